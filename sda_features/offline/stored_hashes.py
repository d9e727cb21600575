"""What is stored of each item, looked up by id at some 30 bytes an item: no Python object is kept of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sda_features.offline.schema import CONTENT_HASH, ITEM_ID

CHUNK = 65_536  # ids that are Python objects at a time


class RowOfId(Mapping[str | int, int]):
    """Item id, as text or as a number -> its place among `ids` (strings or integers, distinct)."""

    def __init__(self, ids: pa.Array | pa.ChunkedArray) -> None:
        texts = ids.cast(pa.string())
        self._ids = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
        digests = np.fromiter((_digest(item_id.as_py()) for item_id in self._ids), np.uint64, len(ids))
        self._order = np.argsort(digests, kind="stable")
        self._digests: npt.NDArray[np.uint64] = digests[self._order]

    def __getitem__(self, item_id: str | int) -> int:
        text = str(item_id)
        digest = np.uint64(_digest(text))
        place = int(self._digests.searchsorted(digest))
        while place < len(self._digests) and self._digests[place] == digest:
            row = int(self._order[place])
            if self._ids[row].as_py() == text:
                return row
            place += 1
        raise KeyError(item_id)

    def __iter__(self) -> Iterator[str]:
        return (item_id.as_py() for item_id in self._ids)

    def __len__(self) -> int:
        return len(self._ids)


class StoredHashes(Mapping[str, str]):
    """Item id -> content hash of its newest row.

    Args:
        rows: item_id (strings or integers) and content_hash, one row an item.
    """

    def __init__(self, rows: pa.Table) -> None:
        self._row_of = RowOfId(rows[ITEM_ID])
        self._hashes = rows[CONTENT_HASH].combine_chunks()

    def __getitem__(self, item_id: str) -> str:
        return str(self._hashes[self._row_of[item_id]].as_py())

    def __iter__(self) -> Iterator[str]:
        return iter(self._row_of)

    def __len__(self) -> int:
        return len(self._row_of)


def missing(stored: pa.ChunkedArray, present: Iterator[str]) -> pa.ChunkedArray:
    """The stored ids whose text is not among `present`, of which some thousand at a time are Python objects."""
    chunks = []
    while chunk := list(islice(present, CHUNK)):
        chunks.append(pa.array(chunk, pa.string()))
    known = pa.chunked_array(chunks, pa.string()).combine_chunks()
    return stored.filter(pc.invert(pc.is_in(stored.cast(pa.string()), value_set=known)))


def _digest(item_id: str) -> int:
    return int.from_bytes(blake2b(item_id.encode(), digest_size=8).digest(), "little")
