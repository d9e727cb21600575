"""Point-in-time joins decided on keys and timestamps alone; vectors are taken afterwards, once."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Integers: TypeAlias = npt.NDArray[np.int64]

NO_KEY = -1  # the source has no row of this key
NOT_YET = -2  # it has, but none that is valid at this time


def key_codes(source: pa.ChunkedArray, wanted: pa.ChunkedArray) -> tuple[Integers, Integers]:
    """Keys as numbers: equal keys of both columns have equal codes; a null is a key like any other.

    Returns:
        source: int64 [m].
        wanted: int64 [n]; `NO_KEY` where the source has no such key.
    """
    keys = pc.unique(source)
    codes = pc.index_in(source, value_set=keys), pc.index_in(wanted, value_set=keys)
    first, second = (column.fill_null(NO_KEY).to_numpy().astype(np.int64) for column in codes)
    return first, second


def point_in_time_rows(
    codes: Integers,
    times: Integers,
    created: Integers,
    wanted_codes: Integers,
    wanted_times: Integers,
    ttl: timedelta | None = None,
) -> Integers:
    """For each wanted pair of key and time, the newest source row that was known by then.

    Among rows of one key the latest time up to the wanted one wins, then the latest `created`, then
    the last row. A row that is older than the wanted time by more than `ttl` is not valid any more.

    Args:
        codes: key of each source row, [m].
        times: event times of the source rows, nanoseconds [m].
        created: times at which they were written, nanoseconds [m].
        wanted_codes: key of each request, [n].
        wanted_times: time of each request, nanoseconds [n].
        ttl: how long a row is valid; None or zero: for ever.

    Returns:
        int64 [n]: positions of source rows, `NO_KEY` or `NOT_YET`.
    """
    order = np.lexsort((created, times, codes))
    instants = np.unique(np.concatenate([times, wanted_times]))
    # One number that sorts like (key, time).
    sorted_rows = codes[order] * len(instants) + np.searchsorted(instants, times[order])
    wanted = wanted_codes * len(instants) + np.searchsorted(instants, wanted_times)
    position = np.searchsorted(sorted_rows, wanted, side="right") - 1
    candidate = order[np.maximum(position, 0)]
    valid = (position >= 0) & (codes[candidate] == wanted_codes)
    if ttl:
        valid &= times[candidate] >= wanted_times - ttl // timedelta(microseconds=1) * 1000
    return np.where(valid, candidate, np.where(wanted_codes == NO_KEY, NO_KEY, NOT_YET))
