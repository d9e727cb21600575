"""The newest row of each key in parquet files: Feast's "latest" rows without pandas.

Keys and timestamps are read first and decide which rows win; only then are the wide columns read,
a batch at a time, so that memory stays bounded whatever the size of the files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pa_dataset
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq

Mask: TypeAlias = npt.NDArray[np.bool_]
Keep: TypeAlias = Literal["first", "last"]

BATCH_ROWS = 1_000
BUFFER_BYTES = 1 << 20  # of a column that are read at once
NO_TIME = np.iinfo(np.int64).min  # before any time


def latest_rows(dataset: pa_dataset.FileSystemDataset, *, columns: Sequence[str], **options: Any) -> pa.Table:
    """The rows of `latest_batches`, whose options these are, as one table."""
    batches = latest_batches(dataset, columns=columns, **options)
    return pa.Table.from_batches(batches, pa.schema([dataset.schema.field(name) for name in columns]))


def latest_batches(
    dataset: pa_dataset.FileSystemDataset,
    *,
    keys: Sequence[str],
    timestamp: str,
    columns: Sequence[str],
    created: str | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    keep: Keep = "last",
    batch_rows: int = BATCH_ROWS,
    files: Collection[str] | None = None,
) -> Iterator[pa.RecordBatch]:
    """The newest row of each key within a time window, in the order in which the files hold them.

    Among rows of one key the latest `timestamp` wins, then the latest `created`, then the row that
    is read last, or first. A row without a timestamp is in no window.

    Args:
        dataset: parquet files.
        keys: columns that together identify an entity; a null is a value of its own.
        timestamp: column of event times; without a time zone they are UTC.
        columns: columns to return, in this order.
        created: column of the times at which rows were written; a null is earlier than any.
        start: first instant of the window, included; None: no bound. Without a time zone it is UTC.
        end: last instant of the window, included.
        keep: which of several rows wins that are equal in all times.
        batch_rows: rows in a batch at most.
        files: paths of those files whose rows are wanted; the others only decide what is newest.

    Yields:
        Batches of `columns`, each with at least one row.
    """
    pieces = [
        piece
        for fragment in dataset.get_fragments()
        for piece in fragment.split_by_row_group(schema=dataset.schema)
    ]
    winners = _winners(dataset.schema, pieces, list(keys), timestamp, created, start, end, keep)
    for piece, wins in zip(pieces, winners, strict=True):
        if not wins.any() or (files is not None and piece.path not in files):
            continue  # its wide columns are not read
        row = 0
        for batch in file_batches(piece, dataset.schema, list(columns), batch_rows):
            chosen = wins[row : row + len(batch)]
            row += len(batch)
            if not chosen.all():
                batch = batch.filter(pa.array(chosen))
            if len(batch):
                yield batch


def file_batches(
    piece: pa_dataset.ParquetFileFragment, schema: pa.Schema, columns: list[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Columns of a parquet file, or of some of its row groups, page by page.

    Arrow's scanner would take three times the memory, because it reads ahead, and twice the time.

    Args:
        piece: the file or row groups.
        schema: of the dataset; a file of another one is read by the scanner, which casts.
        columns: columns to return, in this order.
        batch_rows: rows in a batch at most.
    """
    if not piece.physical_schema.equals(schema):
        yield from piece.to_batches(schema=schema, columns=columns, batch_size=batch_rows)
        return
    folder = piece.filesystem
    local = isinstance(getattr(folder, "base_fs", folder), pa_fs.LocalFileSystem)
    with folder.open_input_file(piece.path) as stream:
        options = {"buffer_size": BUFFER_BYTES} if local else {}  # an object store takes few requests
        file = pq.ParquetFile(stream, metadata=piece.metadata, pre_buffer=not local, **options)
        groups = [group.id for group in piece.row_groups]
        for batch in file.iter_batches(batch_rows, groups, columns):
            yield batch.select(columns)


def _winners(
    schema: pa.Schema,
    pieces: Sequence[pa_dataset.ParquetFileFragment],
    keys: list[str],
    timestamp: str,
    created: str | None,
    start: datetime | None,
    end: datetime | None,
    keep: Keep,
) -> list[Mask]:
    """Which rows of each piece are the newest of their key."""
    names = [*keys, timestamp, *([created] if created else [])]
    tables = [piece.to_table(schema=schema, columns=names) for piece in pieces]
    if not tables:
        return []
    rows = pa.concat_tables(tables)
    times = epoch_nanoseconds(rows[timestamp])
    written = epoch_nanoseconds(rows[created]) if created else np.zeros(len(rows), np.int64)
    inside = times > NO_TIME
    if start is not None:
        inside &= times >= _nanoseconds(start)
    if end is not None:
        inside &= times <= _nanoseconds(end)
    (position,) = inside.nonzero()
    place = position if keep == "last" else -position
    order = position[np.lexsort((place, written[position], times[position]))]
    rank = np.zeros(len(rows), np.int64)
    rank[order] = np.arange(len(order))
    ranked = rows.select(keys).append_column("rank", pa.array(rank))
    if len(position) < len(rows):
        ranked = ranked.filter(pa.array(inside))
    newest = ranked.group_by(keys).aggregate([("rank", "max")])["rank_max"].to_numpy()
    wins = np.zeros(len(rows), np.bool_)
    wins[order[newest]] = True
    return np.split(wins, np.cumsum([len(table) for table in tables])[:-1])


def epoch_nanoseconds(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Times of a timestamp column [n] as nanoseconds since 1970 in UTC; `NO_TIME` for a null."""
    unit = pa.timestamp("ns", tz=column.type.tz)
    return np.asarray(pc.fill_null(column.cast(unit).cast(pa.int64()), NO_TIME))


def _nanoseconds(instant: datetime) -> int:
    aware = instant if instant.tzinfo else instant.replace(tzinfo=UTC)
    elapsed = aware - datetime(1970, 1, 1, tzinfo=UTC)
    return (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000_000 + elapsed.microseconds * 1_000
