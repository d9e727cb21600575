"""Who took what, in which order: read a log, index it, thin it to a k-core. splits.py divides it.

Item code 0 is padding everywhere in this package; code i > 0 is `item_ids[i - 1]`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sda_features.errors import InteractionsError
from sda_features.tables.cells import AS_IT_IS, ID, Rule, UnusableColumn
from sda_features.tables.files import open_table

TIME_COLUMNS = ("timestamp", "position", "event_timestamp")  # the last is that of Feast's entity frames


@dataclass(frozen=True, eq=False)
class Interactions:
    """A log as compressed sparse rows, each user's items in time order.

    Attributes:
        user_ids: Arrow strings [U], sorted by their UTF-8 bytes.
        item_ids: Arrow strings [I]; sorted likewise, or in the order of the catalogue that was given.
        offsets: int64 [U + 1]; user u has `items[offsets[u]:offsets[u + 1]]`.
        items: int32 [n], codes 1..I.
        times: [n], numbers or datetime64 that are comparable between users; None when the log has an
            order alone.
    """

    user_ids: Any
    item_ids: Any
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    times: NDArray[Any] | None = None

    @property
    def user_count(self) -> int:
        """U."""
        return len(self.offsets) - 1

    @property
    def item_count(self) -> int:
        """I, padding not counted."""
        return len(self.item_ids)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Interactions of each user, int64 [U]."""
        return np.diff(self.offsets)

    @cached_property
    def users(self) -> NDArray[np.int64]:
        """User index of each interaction, int64 [n]."""
        return np.repeat(np.arange(self.user_count), self.lengths)

    @cached_property
    def item_counts(self) -> NDArray[np.int64]:
        """Interactions of each item code, int64 [I + 1]; entry 0 is 0."""
        return np.bincount(self.items, minlength=self.item_count + 1)

    @cached_property
    def data_hash(self) -> str:
        """SHA-256 (hex) over ids, order and vocabularies; the same log in another file format agrees."""
        digest = hashlib.sha256()
        for ids in (self.user_ids, self.item_ids):
            encoded = [text.encode() for text in ids.to_pylist()]
            digest.update(np.array([len(encoded), *map(len, encoded)], dtype="<i8").tobytes())
            digest.update(b"".join(encoded))
        digest.update(self.offsets.astype("<i8").tobytes())
        digest.update(self.items.astype("<i4").tobytes())
        return digest.hexdigest()

    def recent(self, users: NDArray[np.integer], length: int) -> NDArray[np.int32]:
        """The last `length` items of each user, left-padded with 0.

        Args:
            users: [B] user indices.
            length: most items a row holds.

        Returns:
            int32 [B, L], L = the longest row, at least 1 and at most `length`; the latest item stands last.
        """
        starts, ends = self.offsets[users], self.offsets[users + 1]
        width = int(np.clip((ends - starts).max(initial=1), 1, length))
        positions = ends[:, None] + np.arange(-width, 0)
        known = positions >= starts[:, None]
        return np.where(known, self.items[np.where(known, positions, 0)], 0).astype(np.int32, copy=False)

    def rows_of(self, users: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """All items of `users` [B], without padding: which of them took it (0..B-1) and its code, both [n]."""
        lengths = self.lengths[users]
        rows = np.repeat(np.arange(len(users)), lengths)
        place = np.arange(len(rows)) + np.repeat(self.offsets[users] - np.cumsum(lengths) + lengths, lengths)
        return rows, self.items[place]

    def without_last(self, dropped: NDArray[np.integer]) -> Interactions:
        """The log without the last `dropped[u]` interactions of each user u; same ids and codes."""
        place = np.arange(len(self.items)) - np.repeat(self.offsets[:-1], self.lengths)
        return self.where(place < np.repeat(self.lengths - dropped, self.lengths))

    def where(self, kept: NDArray[np.bool_]) -> Interactions:
        """The interactions that `kept` [n] marks; same ids and codes."""
        lengths = np.bincount(self.users[kept], minlength=self.user_count)
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        times = None if self.times is None else self.times[kept]
        return Interactions(self.user_ids, self.item_ids, offsets, self.items[kept], times)


def k_core(interactions: Interactions, k: int) -> Interactions:
    """The largest part of a log in which every user and every item has at least k interactions.

    Dropping a user takes interactions from items and the other way round, so it is repeated until
    nothing falls below k. Ids that are gone leave the vocabularies, catalogue items too. Repeated
    interactions count.

    Raises:
        InteractionsError: nothing is left.
    """
    kept = np.ones(len(interactions.items), np.bool_)
    count = -1
    while count != (count := int(kept.sum())):
        users = np.bincount(interactions.users[kept], minlength=interactions.user_count)
        items = np.bincount(interactions.items[kept], minlength=interactions.item_count + 1)
        kept &= (users >= k)[interactions.users] & (items >= k)[interactions.items]
    if not count:
        raise InteractionsError(
            f"The {k}-core of {len(interactions.items)} interactions is empty. Choose a smaller k."
        )
    remaining = interactions.where(kept)
    users, items = np.flatnonzero(remaining.lengths), np.flatnonzero(remaining.item_counts)
    codes = np.zeros(interactions.item_count + 1, np.int32)
    codes[items] = np.arange(1, len(items) + 1)
    return Interactions(
        interactions.user_ids.take(pa.array(users)),
        interactions.item_ids.take(pa.array(items - 1)),
        np.concatenate(([0], np.cumsum(remaining.lengths[users]))),
        codes[remaining.items],
        remaining.times,
    )


def next_positions(log: Interactions) -> NDArray[np.int64]:
    """Each interaction and the same user's next one, as places in the log: int64 [m, 2]."""
    earlier = np.flatnonzero(log.users[1:] == log.users[:-1])
    return np.stack([earlier, earlier + 1], axis=1)


def session_positions(log: Interactions, window: int) -> NDArray[np.int64]:
    """Interactions of one session, the earlier one first, as places in the log: int64 [m, 2].

    A session is what one user took on one day, or, where times are plain numbers, at one time; without
    times there are none. Of a longer session those at most `window` interactions apart are paired, so
    cost grows with the log alone.
    """
    found = [np.zeros((0, 2), np.int64)]
    if log.times is not None:
        is_time = np.issubdtype(log.times.dtype, np.datetime64)
        days = log.times.astype("datetime64[D]") if is_time else log.times
        for apart in range(1, window + 1):
            same = (log.users[apart:] == log.users[:-apart]) & (days[apart:] == days[:-apart])
            if not same.any():
                break  # a session's interactions are neighbours in the log
            earlier = np.flatnonzero(same)
            found.append(np.stack([earlier, earlier + apart], axis=1))
    return np.concatenate(found)


def index_interactions(users: Any, items: Any, order: Any = None, *, catalogue: Any = None) -> Interactions:
    """Index three parallel columns.

    Args:
        users: user ids, strings or integers (Arrow array or sequence) [n].
        items: item ids, likewise [n].
        order: numbers or timestamps [n] that sort a user's interactions, ties in the order given;
            none: the order given.
        catalogue: item ids that make the vocabulary, in this order, so that items without
            interactions take part in rankings; none: the items that occur.

    Raises:
        InteractionsError: no rows, null or empty ids, ids that are not text or integers, duplicate
            catalogue ids, or an item that the catalogue does not know.
    """
    user_column, item_column = _as_ids(users, "user"), _as_ids(items, "item")
    if not len(user_column):
        raise InteractionsError("The log holds no interactions. Expected one row for each interaction.")
    user_ids = _sorted_unique(user_column)
    item_ids = _sorted_unique(item_column) if catalogue is None else _as_ids(catalogue, "catalogue")
    if catalogue is not None:
        _check_catalogue(item_ids, item_column)
    user_codes = pc.index_in(user_column, user_ids).to_numpy(zero_copy_only=False)
    item_codes = pc.index_in(item_column, item_ids).to_numpy(zero_copy_only=False) + 1
    times = None if order is None else _as_order(order)
    by_user = np.lexsort((user_codes,) if times is None else (times, user_codes))  # stable
    lengths = np.bincount(user_codes, minlength=len(user_ids))
    return Interactions(
        user_ids,
        item_ids,
        np.concatenate(([0], np.cumsum(lengths))),
        item_codes[by_user].astype(np.int32),
        None if times is None else times[by_user],
    )


def read_interactions(
    source: Any,
    *,
    user_column: str = "user_id",
    item_column: str = "item_id",
    time_column: str | None = None,
    catalogue: Any = None,
) -> Interactions:
    """Read a log from parquet, CSV or JSONL, a file or a folder, or from a frame; further columns are ignored.

    Args:
        source: path or fsspec URL of a file, whose suffix names the format; or a pandas frame, such
            as an entity frame of Feast with `user_id`, `item_id` and `event_timestamp`.
        user_column: column with the user id.
        item_column: column with the item id.
        time_column: column that orders a user's interactions; none: `timestamp`, `position` or
            `event_timestamp`, whichever there is. A `position` orders one user's and is no time.
        catalogue: see `index_interactions`.

    Raises:
        InteractionsError: missing or unreadable file, missing column, or see `index_interactions`.
    """
    given = user_column, item_column, time_column
    if isinstance(source, str | Path):
        opened = open_table(source, "log", InteractionsError)
        name = opened.name
        table = opened.read(_rules(name, opened.columns, *given))
    else:
        name, table = "The frame", _frame_table(source)
        table = table.select(list(_rules(name, table.column_names, *given)))
    time_column = table.column_names[0]
    try:
        log = index_interactions(
            table[user_column], table[item_column], table[time_column], catalogue=catalogue
        )
    except InteractionsError as error:
        raise InteractionsError(f"{name}: {error}") from None
    return replace(log, times=None) if time_column == "position" else log


def _rules(
    name: str, columns: Sequence[str], user_column: str, item_column: str, time_column: str | None
) -> dict[str, Rule]:
    """How the columns of a log are read, the one of times first."""
    time_column = time_column or _find_time_column(name, columns)
    for column in (user_column, item_column, time_column):
        if column not in columns:
            raise InteractionsError(
                f"{name}: no column {column!r}; the log has {', '.join(columns)}. "
                "Name the right columns or rename them."
            )
    return {time_column: AS_IT_IS, user_column: ID, item_column: ID}


def _find_time_column(name: str, columns: Sequence[str]) -> str:
    present = [column for column in TIME_COLUMNS if column in columns]
    if len(present) != 1:
        raise InteractionsError(
            f"{name}: expected one column that orders interactions, named {', '.join(TIME_COLUMNS[:-1])} or "
            f"{TIME_COLUMNS[-1]}; found {' and '.join(present) or 'none'} among "
            f"{', '.join(columns)}. Name the column to use."
        )
    return present[0]


def _frame_table(frame: Any) -> Any:
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, AttributeError, TypeError) as error:
        raise InteractionsError(
            f"Expected the path of a log or a pandas frame, got {type(frame).__name__}: {error}"
        ) from error


def _as_ids(column: Any, what: str) -> Any:
    """One Arrow string array; see `cells.ID`."""
    try:
        array = column if isinstance(column, pa.Array | pa.ChunkedArray) else pa.array(column)
    except (pa.ArrowException, OverflowError) as error:
        raise InteractionsError(f"The {what} ids mix types: {error}. Give text or integers.") from error
    try:
        ids, faults = ID.arrow(array)
    except UnusableColumn as error:
        raise InteractionsError(
            f"Expected {what} ids as text or integers, got {array.type}: {error}."
        ) from None
    if faults:
        row, why = min(faults.items())
        raise InteractionsError(
            f"{len(faults)} of {len(ids)} {what} ids are not usable, row {row + 1}: {why}."
        )
    if ids.null_count:
        raise InteractionsError(
            f"{ids.null_count} of {len(ids)} {what} ids are null or empty, the first in row "
            f"{pc.index(ids.is_null(), True).as_py() + 1}. Remove these rows or fill in their ids."
        )
    return ids


def _as_order(column: Any) -> NDArray[Any]:
    array = column if isinstance(column, pa.Array | pa.ChunkedArray) else pa.array(column)
    if pa.types.is_string(array.type) and len(array) > array.null_count:
        array = _numbers_or_times(array)
    if pa.types.is_date(array.type):
        array = array.cast(pa.timestamp("s"))
    if pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    number = pa.types.is_integer(array.type) or pa.types.is_floating(array.type)
    if not (number or pa.types.is_timestamp(array.type)):
        raise InteractionsError(f"Expected numbers or timestamps as the order, got {array.type}.")
    if array.null_count or (number and pc.any(pc.is_nan(array)).as_py()):
        raise InteractionsError(
            "The column that orders interactions has nulls. Fill them in or remove the rows."
        )
    values: NDArray[Any] = array.to_numpy()
    return values


def _numbers_or_times(texts: Any) -> Any:
    """Text as the first of integers, floats and timestamps that all of it is; else as it came."""
    for kind in (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC")):
        with contextlib.suppress(pa.ArrowInvalid):
            return texts.cast(kind)
    return texts


def _sorted_unique(array: Any) -> Any:
    unique = pc.unique(array)
    return unique.take(pc.sort_indices(unique))


def _check_catalogue(catalogue: Any, items: Any) -> None:
    if len(pc.unique(catalogue)) != len(catalogue):
        counts = pc.value_counts(catalogue).to_pylist()
        twice = [entry["values"] for entry in counts if entry["counts"] > 1]
        raise InteractionsError(
            f"{len(twice)} catalogue ids occur more than once, e.g. {', '.join(twice[:3])}. Give each item once."
        )
    unknown = pc.unique(items.filter(pc.invert(pc.is_in(items, catalogue))))
    if len(unknown):
        raise InteractionsError(
            f"{len(unknown)} items of the log are not in the catalogue, e.g. "
            f"{', '.join(unknown[:3].to_pylist())}. Add them to the catalogue or remove their interactions; "
            "if the ids look alike, compare how both files write them."
        )
