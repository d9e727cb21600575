"""The offline rows of a slot: what is stored, and rows that are added.

A row is never changed in place: a newer row of an item wins by its event timestamp. compact.py
replaces files by others with the same newest rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pa_dataset
import pyarrow.parquet as pq

from sda_features.errors import FeatureMismatchError, FeatureStoreError
from sda_features.offline.empty_slot import keep_readable
from sda_features.offline.latest import latest_batches, latest_rows
from sda_features.offline.location import Location, open_folder
from sda_features.offline.schema import CONTENT_HASH, EVENT_TIMESTAMP, ITEM_ID, SCHEMA, check_table, typed_ids
from sda_features.offline.table import (
    commit,
    dataset_of,
    open_table,
    prepare_table,
    read_table,
    row_files,
    write_file,
)
from sda_features.serving import codec
from sda_features.serving.layout import IMAGE, TEXT, VERSION, IdType

NARROW_ROWS = 100_000
MILLISECOND = timedelta(milliseconds=1)
NARROW = [ITEM_ID, VERSION, CONTENT_HASH, EVENT_TIMESTAMP]  # all but the vectors


def write_part(location: Location, table: pa.Table, *, id_type: IdType = "string") -> str:
    """Add the rows of `table` to a feature set, all or none.

    Args:
        location: of the feature set; created when missing (`FeatureSet.folder` names it).
        table: rows of `schema.SCHEMA`, one an item.
        id_type: type of the ids in Feast (`FeatureSet.id_type`); they are stored in it.

    Returns:
        Name of the file with the rows.

    Raises:
        FeatureStoreError: the table breaks the schema (see `check_table`), or an item has a row
            that is not older: Feast would keep the stored vectors without a word.
        FeatureMismatchError: vectors have another dimension than the stored ones, or an id is not
            of `id_type`.
    """
    table = cast_ids(location, table, id_type)
    _check_later(location, table)
    return add_rows(location, table)


def cast_ids(location: Location, table: pa.Table, id_type: IdType) -> pa.Table:
    """Check rows as for `write_part`, but for their times; return them with ids of their type."""
    dim = check_table(table, newest=lambda: newest_timestamp(location))
    ids = typed_ids(table, id_type)
    table = table.set_column(0, pa.field(ITEM_ID, ids.type, nullable=False), ids)
    if not len(table):
        raise FeatureStoreError("Expected rows to write, got an empty table.")
    stored, new = stored_form(location), _form_of([table])
    if stored and dim and stored[1] != dim:
        raise FeatureMismatchError(
            f"The parts in {location} have vectors of dimension {stored[1]}, got {dim}. "
            "Write the vectors of another model to a feature set of their own."
        )
    if stored and new and stored[0] != new[0]:
        raise FeatureMismatchError(
            f"The parts in {location} store vectors as {stored[0]}, got {new[0]}. Smaller vectors are a feature set of "
            "their own (`sda-features init --feature-sets NAME:DTYPE`)."
        )
    return table


def add_rows(location: Location, table: pa.Table) -> str:
    """Add rows that `cast_ids` has checked and that are newer than all stored ones; return their file."""
    prepare_table(location, table.schema)
    action = write_file(location, table)
    commit(location, [action])
    keep_readable(location)
    return action.path


def part_paths(location: Location) -> list[str]:
    """The files with the rows of a feature set, sorted by name; none if there is none."""
    return [f"{location}/{file.name}" for file in row_files(location)]


def stored_form(location: Location) -> tuple[str, int] | None:
    """How stored vectors are stored and their dimension; None without a vector."""
    for file in row_files(location):
        # Some rows will do: the first of a file is seldom without a vector.
        with open_folder(location).open_input_file(file.name) as stream:
            batches = pq.ParquetFile(stream).iter_batches(64, columns=[TEXT, IMAGE])
            if form := _form_of(batches):
                return form
    return None


def stored_dim(location: Location) -> int | None:
    """Dimension of the stored vectors; None without a vector."""
    form = stored_form(location)
    return form and form[1]


def newest_timestamp(location: Location) -> datetime | None:
    """The latest stored event timestamp; None without a row."""
    names = [file.name for file in row_files(location)]
    if (table := open_table(location)) is not None and names:
        logged = pa.table(table.get_add_actions(flatten=True))
        latest = logged[f"max.{EVENT_TIMESTAMP}"].cast(pa.timestamp("us", tz="UTC"))
        if not latest.null_count:  # other writers' logs cut the microseconds off
            near = pc.greater_equal(latest, pa.scalar(pc.max(latest).as_py() - MILLISECOND, latest.type))
            names = logged["path"].filter(near).to_pylist()
    if not names:
        return None
    column = dataset_of(location, names).to_table(columns=[EVENT_TIMESTAMP])[EVENT_TIMESTAMP]
    return pc.max(column).as_py()  # type: ignore[no-any-return]


def next_timestamp(location: Location) -> datetime:
    """Event timestamp for new rows: now, or just after the newest stored row if the clock is behind it."""
    return now_or_after(newest_timestamp(location))


def now_or_after(newest: datetime | None) -> datetime:
    """Now, or just after `newest` if the clock is behind it."""
    now = datetime.now(UTC)
    return now if newest is None else max(now, newest + timedelta(microseconds=1))


def stored_rows(location: Location, *, end: datetime | None = None) -> pa.Table:
    """The newest row of each item, without its vectors.

    Args:
        location: of the feature set; it may be missing.
        end: rows after this instant are left out, with a time zone; None: none are.

    Returns:
        Columns item_id, adapter_version, content_hash and event_timestamp, in no order.
    """

    def read(dataset: pa_dataset.FileSystemDataset | None) -> pa.Table:
        if dataset is None:
            return pa.schema([SCHEMA.field(name) for name in NARROW]).empty_table()
        options = {"keys": [ITEM_ID], "timestamp": EVENT_TIMESTAMP, "batch_rows": NARROW_ROWS}
        return latest_rows(dataset, columns=NARROW, end=end, **options)

    return read_table(location, read)


def newest_batches(
    location: Location, *, end: datetime | None = None, columns: Collection[str] = SCHEMA.names
) -> Iterator[pa.RecordBatch]:
    """The newest row of each item, with its vectors, some thousand rows at a time."""
    if files := row_files(location):
        dataset = dataset_of(location, [file.name for file in files])
        yield from latest_batches(
            dataset, keys=[ITEM_ID], timestamp=EVENT_TIMESTAMP, columns=list(columns), end=end
        )


def _form_of(batches: Iterable[pa.RecordBatch | pa.Table]) -> tuple[str, int] | None:
    """Store dtype and dimension of the first vector; None without one."""
    for batch in batches:
        for column in (batch[TEXT], batch[IMAGE]):
            for value in column.drop_null().slice(0, 1):
                if pa.types.is_list(column.type):
                    return "float32", len(value)
                packed = value.as_py()
                return codec.describe_vector(codec.value_header("bytes", len(packed)) + packed, "of the part")
    return None


def _check_later(folder: Location, table: pa.Table) -> None:
    """Every item of `table` that has rows in `folder` must be newer than all of them."""
    files = row_files(folder)
    if not files:
        return
    stored = dataset_of(folder, [file.name for file in files])
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
