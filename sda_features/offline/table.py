"""The rows of a slot as a Delta Lake table: a folder of parquet files and a log of what counts.

Readers see the files that the newest entry of the log names, and two writers that change the same
files cannot both succeed. A reader that knows no log, such as stock Feast's file store, reads the
folder as plain parquet: rows that are superseded are older rows of their item there, or equal ones,
and files that no longer count are deleted as soon as the log has let them go.

The files are written by Arrow, uncompressed, as readers want them; deltalake keeps the log.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pa_dataset
import pyarrow.parquet as pq
from deltalake import DeltaTable, Schema, convert_to_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction
from pyarrow.fs import FileInfo, FileSelector, FileType

from sda_features.artifacts import atomic_file
from sda_features.errors import FeatureStoreError
from sda_features.offline.empty_slot import EMPTY_FILE
from sda_features.offline.location import Location, is_url, open_folder, parquet_names
from sda_features.offline.schema import CONTENT_HASH, EVENT_TIMESTAMP, ITEM_ID
from sda_features.serving.layout import VERSION

T = TypeVar("T")

STAGED = ".part-"  # begins the name of a file that is not committed yet
HIDDEN = "."  # readers of parquet folders skip names with a dot
ATTEMPTS = 10  # to read files that are being replaced
KEPT = 8  # tables that stay open in a thread
ORPHAN_HOURS = 24  # at a URL nobody knows whether a file without an entry is still being written
SETTINGS = {"delta.dataSkippingStatsColumns": f"{ITEM_ID},{EVENT_TIMESTAMP}"}


@dataclass(frozen=True)
class RowFile:
    """A parquet file of a table: its name in the folder, its rows, its bytes."""

    name: str
    rows: int
    size: int


class _Kept(threading.local):
    """Tables that this thread has opened, the last ones last: location -> table, and the file of its newest entry."""

    def __init__(self) -> None:
        self.tables: dict[str, tuple[DeltaTable, FileInfo]] = {}


_kept = _Kept()


def open_table(location: Location) -> DeltaTable | None:
    """The table at a location, as it is now; None if there is none, or a folder of parquet files without a log.

    A table stays open: the next call reads the entries that are new in its log, not the whole log.

    Raises:
        FeatureStoreError: the log cannot be read.
    """
    folder, key = open_folder(location), str(location)
    kept = _kept.tables.pop(key, None)
    table: DeltaTable | None = None
    try:
        if kept is not None:
            table, seen = kept
            now, newer = folder.get_file_info([seen.path, _entry(table.version() + 1)])
            if (now.size, now.mtime_ns) != (seen.size, seen.mtime_ns):
                table = None  # the folder was deleted, and made anew
            elif newer.type != FileType.NotFound:
                table.update_incremental()
        table = table or DeltaTable(key)
        while len(_kept.tables) >= KEPT:
            _kept.tables.pop(next(iter(_kept.tables)))
        _kept.tables[key] = table, folder.get_file_info(_entry(table.version()))
        return table
    except TableNotFoundError:
        return None
    except (DeltaError, OSError) as problem:
        raise FeatureStoreError(f"The Delta table at {location} cannot be opened: {problem}") from None


def row_files(location: Location) -> list[RowFile]:
    """The files of a table, sorted by name; those of a folder that has no log yet, without their sizes."""
    table = open_table(location)
    if table is None:
        return [RowFile(name, 0, 0) for name in parquet_names(location) if name != EMPTY_FILE]
    return _counting(table)


def read_table(location: Location, read: Callable[[pa_dataset.FileSystemDataset | None], T]) -> T:
    """`read` the files of a table as one dataset, again if some of them are replaced meanwhile.

    Args:
        location: of the table.
        read: is given None if there are no rows.

    Raises:
        FeatureStoreError: files keep vanishing.
    """
    for _ in range(ATTEMPTS):
        names = [file.name for file in row_files(location)]
        if not names:
            return read(None)
        try:
            return read(dataset_of(location, names))
        except FileNotFoundError:
            if names == [file.name for file in row_files(location)]:
                raise  # a file that counts is not there
    raise FeatureStoreError(
        f"The files in {location} were replaced {ATTEMPTS} times while they were read. "
        "Read again when no run is writing there."
    )


def dataset_of(location: Location, names: Sequence[str]) -> pa_dataset.FileSystemDataset:
    """Files of a folder as one dataset, in the order given."""
    return pa_dataset.dataset(list(names), filesystem=open_folder(location), format="parquet")


def write_file(location: Location, table: pa.Table, *, staged: bool = False) -> AddAction:
    """Write rows as a file that counts as soon as it is committed; local ones appear whole or not at all.

    Args:
        location: of the table.
        table: the rows.
        staged: the file has a dot before its name, so that no reader sees it, until `publish`.
    """
    latest = pc.max(table[EVENT_TIMESTAMP]).as_py()
    name = f"part-{latest:%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:12]}.parquet"  # sorts by time
    # Vectors shrink by some 8 % and would take twice as long to read.
    narrow = dict.fromkeys((ITEM_ID, VERSION, CONTENT_HASH, EVENT_TIMESTAMP), "zstd")
    options = {"compression": narrow, "use_dictionary": [VERSION], "write_page_checksum": True}
    path = HIDDEN + name if staged else name
    if is_url(location):
        pq.write_table(table, path, filesystem=open_folder(location), **options)
    else:
        with atomic_file(Path(location, path)) as temporary:
            pq.write_table(table, temporary, **options)
    bounds = {column: pc.min_max(table[column]).as_py() for column in (ITEM_ID, EVENT_TIMESTAMP)}
    stats = {
        "numRecords": len(table),
        "minValues": {column: value["min"] for column, value in bounds.items()},
        "maxValues": {column: value["max"] for column, value in bounds.items()},
        "nullCount": dict.fromkeys(bounds, 0),
    }
    statistics = json.dumps(stats, default=datetime.isoformat)
    size = open_folder(location).get_file_info(path).size
    return AddAction(name, size, {}, time.time_ns() // 1_000_000, True, statistics)


def publish(location: Location, actions: Iterable[AddAction]) -> None:
    """Give staged files their names; commit them next."""
    folder = open_folder(location)
    for action in actions:
        folder.move(HIDDEN + action.path, action.path)


def prepare_table(location: Location, schema: pa.Schema) -> None:
    """Make a table where there is none; parquet files without a log become its first rows."""
    if open_table(location) is not None:
        return
    folder, names = open_folder(location), parquet_names(location)
    if names and set(names) != {EMPTY_FILE}:
        if EMPTY_FILE in names:
            folder.delete_file(EMPTY_FILE)
        convert_to_deltalake(str(location), configuration=SETTINGS)
        return
    if not is_url(location):
        Path(location).mkdir(parents=True, exist_ok=True)
    DeltaTable.create(str(location), Schema.from_arrow(schema), mode="ignore", configuration=SETTINGS)


def commit(location: Location, add: Iterable[AddAction], remove: Sequence[RowFile] = ()) -> None:
    """Let files count, and others count no longer, in one step; then delete those.

    Args:
        location: of a table.
        add: files that `write_file` has written.
        remove: files that count until now.

    Raises:
        FeatureStoreError: another writer has changed the same files meanwhile.
    """
    table = open_table(location)
    assert table is not None
    now = time.time_ns() // 1_000_000
    gone = [RemoveAction(file.name, True, now, file.size, {}) for file in remove]
    try:
        if not {file.name for file in remove} <= {file.name for file in _counting(table)}:
            raise CommitFailedError("a file does not count any more")
        table.create_write_transaction([*add, *gone], "append", table.schema())
    except CommitFailedError as problem:
        raise FeatureStoreError(
            f"Another run has changed {location} meanwhile; nothing of this step counts. Run again. ({problem})"
        ) from None
    if gone:
        table.update_incremental()
        table.vacuum(0, dry_run=False, enforce_retention_duration=False)


def damaged_files(location: Location) -> list[RowFile]:
    """Files whose bytes are not those that were written, by the checksums of their pages, or that are gone."""
    folder, damaged = open_folder(location), []
    for file in row_files(location):
        try:
            with folder.open_input_file(file.name) as stream:
                for _ in pq.ParquetFile(stream, page_checksum_verification=True).iter_batches(1_000):
                    pass
        except (pa.ArrowException, OSError):
            damaged.append(file)
    return damaged


def sweep(location: Location) -> None:
    """Delete what killed runs have written and not committed; only for the one who may write there."""
    hours = ORPHAN_HOURS if is_url(location) else 0
    folder, ends = open_folder(location), time.time() - 3600 * hours
    for file in folder.get_file_info(FileSelector("", allow_not_found=True)):
        staged = file.type == FileType.File and file.base_name.startswith(STAGED)
        if staged and file.mtime.timestamp() <= ends:
            with contextlib.suppress(FileNotFoundError):
                folder.delete_file(file.path)
    known = {EMPTY_FILE, *(file.name for file in row_files(location))}
    table = open_table(location)
    if table is not None and not known.issuperset(parquet_names(location)):
        table.vacuum(hours, dry_run=False, enforce_retention_duration=False, full=True)


def _entry(version: int) -> str:
    return f"_delta_log/{version:020}.json"


def _counting(table: DeltaTable) -> list[RowFile]:
    actions = pa.table(table.get_add_actions(flatten=True)).select(["path", "num_records", "size_bytes"])
    files = [RowFile(row["path"], row["num_records"] or 0, row["size_bytes"]) for row in actions.to_pylist()]
    return sorted(files, key=lambda file: file.name)
