"""What is stored of each item, looked up by id at some 30 bytes an item: no Python object is kept of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sda_features.offline.schema import CONTENT_HASH, ITEM_ID


class StoredHashes(Mapping[str, str]):
    """Item id -> content hash of its newest row.

    Args:
        rows: item_id (strings or integers) and content_hash, one row an item.
    """

    def __init__(self, rows: pa.Table) -> None:
        self._ids = rows[ITEM_ID].cast(pa.string()).combine_chunks()
        self._hashes = rows[CONTENT_HASH].combine_chunks()
        digests = np.fromiter((_digest(item_id.as_py()) for item_id in self._ids), np.uint64, len(rows))
        self._order = np.argsort(digests, kind="stable")
        self._digests: npt.NDArray[np.uint64] = digests[self._order]

    def __getitem__(self, item_id: str) -> str:
        digest = np.uint64(_digest(item_id))
        place = int(self._digests.searchsorted(digest))
        while place < len(self._digests) and self._digests[place] == digest:
            row = int(self._order[place])
            if self._ids[row].as_py() == item_id:
                return str(self._hashes[row].as_py())
            place += 1
        raise KeyError(item_id)

    def __iter__(self) -> Iterator[str]:
        return (item_id.as_py() for item_id in self._ids)

    def __len__(self) -> int:
        return len(self._ids)


def missing(stored: pa.ChunkedArray, present: pa.Array) -> pa.ChunkedArray:
    """The stored ids whose text is not among `present`."""
    return stored.filter(pc.invert(pc.is_in(stored.cast(pa.string()), value_set=present)))


def _digest(item_id: str) -> int:
    return int.from_bytes(blake2b(item_id.encode(), digest_size=8).digest(), "little")
