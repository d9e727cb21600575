"""Fewer and larger parts with the same newest rows; rows of removed items leave here.

New parts are complete before an old one is deleted, and a row keeps its timestamp. So between any
two steps, and after a crash, a folder holds every newest row once or twice, alike both times, and
neither Feast nor this package tells two equal rows from one. A run that follows a crash replaces
the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pa_dataset

from sda_features.feature_store.latest import latest_batches
from sda_features.feature_store.parts import part_paths, save_part, stored_dim
from sda_features.feature_store.schema import EVENT_TIMESTAMP, ITEM_ID, SCHEMA

PART_ROWS = 8192  # of a new part: 64 MiB with two vectors of 1024
MANY_PARTS = 32  # beyond those that full parts would make
SUPERSEDED = 0.25  # share of superseded rows that is put up with


@dataclass(frozen=True)
class Compacted:
    """What `compact` did to a folder.

    Attributes:
        parts_before, parts: parts before and after.
        rows_before, rows: rows before and after.
    """

    parts_before: int
    parts: int
    rows_before: int
    rows: int


def compact(folder: Path, *, remove: Collection[str | int] = ()) -> Compacted | None:
    """Rewrite the newest rows of a folder as few parts and delete the parts they were in.

    Memory holds one new part. The caller holds the folder's lock (lock.py).

    Args:
        folder: folder of parts.
        remove: ids of items that go, in the type in which the parts store them.

    Returns:
        What was done; None if the folder has few parts, few superseded rows, and nothing to remove.
    """
    old = part_paths(folder)
    if not old:
        return None
    dataset = pa_dataset.dataset(old)
    rows = dataset.count_rows()
    items = pc.count_distinct(dataset.to_table(columns=[ITEM_ID])[ITEM_ID]).as_py()
    few_parts = len(old) <= MANY_PARTS + items // PART_ROWS
    if few_parts and rows - items <= SUPERSEDED * items and not remove:
        return None
    dim = stored_dim(folder)
    new: list[str] = []
    kept = 0
    for table in _tables(dataset, remove):
        new.append(str(save_part(folder, table, dim)))
        kept += len(table)
    for path in old:  # the oldest first
        if path not in new:
            Path(path).unlink()
    return Compacted(len(old), len(new), rows, kept)


def _tables(dataset: pa_dataset.FileSystemDataset, remove: Collection[str | int]) -> Iterator[pa.Table]:
    """The newest rows, without those of `remove`, in tables of at most `PART_ROWS` rows."""
    gone = pa.array(list(remove), dataset.schema.field(ITEM_ID).type)
    waiting: list[pa.RecordBatch] = []
    for batch in latest_batches(dataset, keys=[ITEM_ID], timestamp=EVENT_TIMESTAMP, columns=SCHEMA.names):
        kept = batch.filter(pc.invert(pc.is_in(batch[ITEM_ID], value_set=gone)))
        waiting.append(kept)
        if sum(map(len, waiting)) + len(batch) > PART_ROWS:
            yield _table(waiting)
            waiting = []
    if sum(map(len, waiting)):
        yield _table(waiting)


def _table(batches: list[pa.RecordBatch]) -> pa.Table:
    return pa.Table.from_batches(batches).combine_chunks()
