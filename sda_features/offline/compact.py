"""Fewer and larger files with the same newest rows; rows of removed items leave here.

New files take the place of old ones in one entry of the log, and a row keeps its timestamp. Who
reads the folder as plain parquet finds a row twice for a moment, alike both times, and neither Feast
nor this package tells two equal rows from one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pa_dataset

from sda_features.offline.empty_slot import keep_readable
from sda_features.offline.latest import latest_batches
from sda_features.offline.location import Location
from sda_features.offline.schema import EVENT_TIMESTAMP, ITEM_ID, SCHEMA
from sda_features.offline.table import RowFile, commit, dataset_of, prepare_table, row_files, write_file

PART_BYTES = 64 << 20  # of a new file
PART_ROWS = 131_072  # of a new file at most
MANY_PARTS = 32  # small files, beyond which they are put together
SUPERSEDED = 0.25  # share of superseded rows that is put up with


def compact(location: Location, *, remove: Collection[str | int] = ()) -> None:
    """Rewrite the newest rows of files that are too small, hold removed items, or too many old rows.

    Nothing is done if there are few files, few superseded rows, and nothing to remove. Memory holds
    one new file, and keys and times of all rows. The caller is the only writer.

    Args:
        location: of the rows.
        remove: ids of items that go, in the type in which they are stored.
    """
    if not row_files(location):
        return
    prepare_table(location, SCHEMA)
    files = row_files(location)
    dataset = dataset_of(location, [file.name for file in files])
    chosen = _chosen(files, dataset, remove)
    if not chosen:
        return
    tables = _tables(dataset, remove, {file.name for file in chosen})
    commit(location, [write_file(location, table) for table in tables], chosen)
    keep_readable(location)


def clear(location: Location) -> None:
    """Delete all rows."""
    if row_files(location):
        prepare_table(location, SCHEMA)
        commit(location, [], row_files(location))


def _chosen(
    files: list[RowFile], dataset: pa_dataset.FileSystemDataset, remove: Collection[str | int]
) -> list[RowFile]:
    """The files to rewrite."""
    rows = sum(file.rows for file in files)
    ids = dataset.to_table(columns=[ITEM_ID])[ITEM_ID]
    items = pc.count_distinct(ids).as_py()
    if rows - items > SUPERSEDED * items:
        return files
    small = [file for file in files if file.size < PART_BYTES // 2 and file.rows < PART_ROWS // 2]
    chosen = {file.name for file in small} if len(small) > MANY_PARTS else set()
    if remove:
        gone = pc.is_in(ids, value_set=pa.array(list(remove), ids.type))
        start = 0
        for file in files:
            if pc.any(gone.slice(start, file.rows)).as_py():
                chosen.add(file.name)
            start += file.rows
    return [file for file in files if file.name in chosen]


def _tables(
    dataset: pa_dataset.FileSystemDataset, remove: Collection[str | int], names: Collection[str]
) -> Iterator[pa.Table]:
    """The newest rows that lie in the named files, without those of `remove`, in tables of one file each."""
    gone = pa.array(list(remove), dataset.schema.field(ITEM_ID).type)
    waiting: list[pa.RecordBatch] = []
    for batch in latest_batches(
        dataset, keys=[ITEM_ID], timestamp=EVENT_TIMESTAMP, columns=SCHEMA.names, files=names
    ):
        if remove:
            batch = batch.filter(pc.invert(pc.is_in(batch[ITEM_ID], value_set=gone)))
        waiting.append(batch)
        size = sum(piece.nbytes for piece in waiting)
        if size + batch.nbytes > PART_BYTES or sum(map(len, waiting)) + len(batch) > PART_ROWS:
            yield pa.Table.from_batches(waiting).combine_chunks()
            waiting = []
    if sum(map(len, waiting)):
        yield pa.Table.from_batches(waiting).combine_chunks()
