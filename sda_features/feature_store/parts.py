"""The offline rows of a slot as a folder of parquet parts.

A part is written once, whole or not at all, and never changed; a newer row of an item lies in a
later part and wins by its event timestamp. compact.py replaces parts by fewer ones with the same
newest rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pa_dataset
import pyarrow.parquet as pq

from sda_features.artifacts import atomic_file
from sda_features.errors import FeatureMismatchError, FeatureStoreError
from sda_features.feature_store.empty_slot import EMPTY_FILE, keep_readable
from sda_features.feature_store.latest import latest_batches
from sda_features.feature_store.schema import (
    CONTENT_HASH,
    EVENT_TIMESTAMP,
    ID_TYPES,
    ITEM_ID,
    SCHEMA,
    check_table,
    column_dim,
)
from sda_features.serving import codec
from sda_features.serving.layout import IMAGE, TEXT, VERSION, IdType, parse_item_id

T = TypeVar("T")

DIM_KEY = b"sda_features.dim"  # in a part's schema metadata
ATTEMPTS = 10  # to read parts that are being replaced


def write_part(folder: Path | str, table: pa.Table, *, id_type: IdType = "string") -> Path:
    """Write the rows of `table` as one more part of a feature set, atomically.

    Args:
        folder: folder of the feature set; created when missing (`FeatureSet.folder` names it).
        table: rows of `schema.SCHEMA`, one an item.
        id_type: type of the ids in Feast (`FeatureSet.id_type`); the part stores them in it.

    Returns:
        Path of the part.

    Raises:
        FeatureStoreError: the table breaks the schema (see `check_table`), or an item has a row
            that is not older: Feast would keep the stored vectors without a word.
        FeatureMismatchError: vectors have another dimension than the parts in the folder, or an id
            is not of `id_type`.
    """
    folder = Path(folder)
    dim = check_table(table, newest=lambda: newest_timestamp(folder))
    ids = pa.array(
        [parse_item_id(item_id, id_type) for item_id in table[ITEM_ID].to_pylist()], ID_TYPES[id_type]
    )
    table = table.set_column(0, pa.field(ITEM_ID, ids.type, nullable=False), ids)
    if not len(table):
        raise FeatureStoreError("Expected rows to write, got an empty table.")
    known = stored_dim(folder)
    if None not in (dim, known) and dim != known:
        raise FeatureMismatchError(
            f"The parts in {folder} have vectors of dimension {known}, got {dim}. "
            "Write the vectors of another model to a feature set of their own."
        )
    _check_alike(folder, table)
    _check_later(folder, table)
    path = save_part(folder, table, dim)
    keep_readable(folder)
    return path


def save_part(folder: Path, table: pa.Table, dim: int | None) -> Path:
    """Write rows as a part without a look at what is there; see `write_part`."""
    table = table.replace_schema_metadata({DIM_KEY: str(dim or "")})
    target = folder / _part_name(table)
    with atomic_file(target) as temporary:
        # Vectors shrink by some 8 % and would take twice as long to read.
        narrow = dict.fromkeys((ITEM_ID, VERSION, CONTENT_HASH, EVENT_TIMESTAMP), "zstd")
        pq.write_table(table, temporary, compression=narrow, use_dictionary=[VERSION])
    return target


def part_paths(folder: Path | str) -> list[str]:
    """The parts in a folder, sorted by name; none if it is missing.

    A folder is listed until two lists agree: one that is made while parts are replaced could miss
    both an old part and the one that has taken its place.
    """
    paths = None
    while paths != (
        again := [str(path) for path in sorted(Path(folder).glob("*.parquet")) if path.name != EMPTY_FILE]
    ):
        paths = again
    return again


def read_parts(folder: Path | str, read: Callable[[list[str]], T]) -> T:
    """`read` the parts in a folder, again if some of them are replaced meanwhile.

    Raises:
        FeatureStoreError: parts keep vanishing.
    """
    for _ in range(ATTEMPTS):
        before = part_paths(folder)
        try:
            result = read(before)
        except FileNotFoundError:
            if before == part_paths(folder):
                raise  # what is missing is not a part
            continue
        if set(before) <= set(part_paths(folder)):
            return result
    raise FeatureStoreError(
        f"The parts in {folder} were replaced {ATTEMPTS} times while they were read. "
        "Read again when no run is writing there."
    )


def stored_dim(folder: Path | str) -> int | None:
    """Dimension of the vectors in a folder of parts; None without a vector."""
    return read_parts(
        folder,
        lambda paths: next((dim for path in paths if (dim := _part_dim(path)) is not None), None),
    )


def newest_timestamp(folder: Path | str) -> datetime | None:
    """The latest event timestamp in a folder of parts; None without a row."""

    def newest(paths: list[str]) -> datetime | None:
        if not paths:
            return None
        column = pa_dataset.dataset(paths).to_table(columns=[EVENT_TIMESTAMP])[EVENT_TIMESTAMP]
        return pc.max(column).as_py()  # type: ignore[no-any-return]

    return read_parts(folder, newest)


def next_timestamp(folder: Path | str) -> datetime:
    """Event timestamp for new rows: now, or just after the newest stored row if the clock is behind it."""
    now, newest = datetime.now(UTC), newest_timestamp(folder)
    return now if newest is None else max(now, newest + timedelta(microseconds=1))


def stored_rows(folder: Path | str, *, end: datetime | None = None) -> pa.Table:
    """The newest row of each item in a folder of parts, without its vectors.

    Args:
        folder: folder of the feature set; it may be missing.
        end: rows after this instant are left out, with a time zone; None: none are.

    Returns:
        Columns item_id, adapter_version, content_hash and event_timestamp, in no order.
    """
    return read_parts(folder, lambda paths: _newest_rows(paths, end))


def newest_batches(folder: Path | str) -> Iterator[pa.RecordBatch]:
    """The newest row of each item in a folder of parts, with its vectors, some thousand rows at a time."""
    paths = part_paths(folder)
    if paths:
        dataset = pa_dataset.dataset(paths)
        yield from latest_batches(dataset, keys=[ITEM_ID], timestamp=EVENT_TIMESTAMP, columns=SCHEMA.names)


def _newest_rows(paths: list[str], end: datetime | None) -> pa.Table:
    columns = [ITEM_ID, VERSION, CONTENT_HASH, EVENT_TIMESTAMP]
    if not paths:
        schema = pa.schema([pa.field(name, pa.string()) for name in columns[:3]])
        return schema.append(pa.field(EVENT_TIMESTAMP, pa.timestamp("us", tz="UTC"))).empty_table()
    until = None if end is None else pc.field(EVENT_TIMESTAMP) <= pa.scalar(end, pa.timestamp("us", tz="UTC"))
    rows = pa_dataset.dataset(paths).to_table(columns=columns, filter=until)
    rows = rows.sort_by([(EVENT_TIMESTAMP, "descending")])
    first = (
        pa.table({ITEM_ID: rows[ITEM_ID], "row": np.arange(len(rows))})
        .group_by(ITEM_ID)
        .aggregate([("row", "min")])
    )
    return rows.take(first["row_min"])


def remove_leftovers(folder: Path) -> None:
    """Delete what runs that were killed have half written; only for the one who may write there."""
    for path in folder.glob(".part-*"):
        path.unlink(missing_ok=True)


def _part_dim(path: str) -> int | None:
    """Dimension of the vectors of a part; None if all are null."""
    stored = (pq.read_schema(path).metadata or {}).get(DIM_KEY)
    if stored is not None:
        return int(stored) if stored else None
    table = pq.read_table(path, columns=[TEXT, IMAGE])  # a part that was not written here
    return column_dim(table, TEXT) or column_dim(table, IMAGE)


def _part_name(table: pa.Table) -> str:
    """`part-{time}-{hash of the ids}.parquet`: sorts by time, and a repeated run repeats the name."""
    latest = pc.max(table[EVENT_TIMESTAMP]).as_py()
    digest = hashlib.sha256(repr(table[ITEM_ID].to_pylist()).encode()).hexdigest()[:12]
    return f"part-{latest:%Y%m%dT%H%M%S%f}-{digest}.parquet"


def _check_alike(folder: Path, table: pa.Table) -> None:
    """The parts of a folder store their vectors in one way: readers decode many at once."""
    for path in part_paths(folder)[:1]:
        # Some rows will do: the first of a part is seldom without a vector.
        stored = _store_dtype(next(pq.ParquetFile(path).iter_batches(64, columns=[TEXT, IMAGE])))
        new = _store_dtype(table)
        if None not in (stored, new) and stored != new:
            raise FeatureMismatchError(
                f"The parts in {folder} store vectors as {stored}, got {new}. Smaller vectors are a feature set of "
                "their own (`sda-features init --feature-sets NAME:DTYPE`)."
            )


def _store_dtype(rows: pa.Table | pa.RecordBatch) -> str | None:
    """How vectors are stored; None if they are packed and all null."""
    if pa.types.is_list(rows[TEXT].type):
        return "float32"
    values = (value.as_py() for column in (rows[TEXT], rows[IMAGE]) for value in column.drop_null())
    value = next(values, None)
    if value is None:
        return None
    return codec.describe_vector(codec.value_header("bytes", len(value)) + value, "of the part")[0]


def _check_later(folder: Path, table: pa.Table) -> None:
    """Every item of `table` that has rows in `folder` must be newer than all of them."""
    paths = part_paths(folder)
    if not paths:
        return
    stored = pa_dataset.dataset(paths)
    stored_type = stored.schema.field(ITEM_ID).type
    if stored_type != table[ITEM_ID].type:
        raise FeatureStoreError(
            f"The parts in {folder} have ids of type {stored_type}, got {table[ITEM_ID].type}. "
            "Write to a new folder after the type of the item entity has changed."
        )
    # Statistics of the parts answer the filter, so parts of earlier runs are not read.
    not_older = pc.field(EVENT_TIMESTAMP) >= pc.min(table[EVENT_TIMESTAMP])
    rivals = stored.to_table(columns=[ITEM_ID, EVENT_TIMESTAMP], filter=not_older)
    both = table.select([ITEM_ID, EVENT_TIMESTAMP]).join(
        rivals, ITEM_ID, join_type="inner", right_suffix="_stored"
    )
    late = both.filter(pc.less_equal(both[EVENT_TIMESTAMP], both[f"{EVENT_TIMESTAMP}_stored"]))
    if len(late):
        row = late.slice(0, 1).to_pylist()[0]
        raise FeatureStoreError(
            f"{len(late)} items have a stored row that is as new, such as {row[ITEM_ID]!r}: stored "
            f"{row[f'{EVENT_TIMESTAMP}_stored'].isoformat()}, new {row[EVENT_TIMESTAMP].isoformat()}. Feast keeps "
            "the stored vectors on a tie. Stamp the new rows with a later event_timestamp."
        )
