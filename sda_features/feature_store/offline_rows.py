"""The offline rows of a slot as `materialize` reads and writes them: a table of our own, or Feast's own store.

A warehouse (BigQuery, Snowflake, ...) or a single file is reached through Feast alone, with
`write_to_offline_store`. Feast deletes nothing there, so an item that is gone gets a newer row
without vectors and without a content hash.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
from deltalake.transaction import AddAction
from pyarrow.fs import FileType

from sda_features.errors import FeatureStoreError
from sda_features.feature_store.repo import FeatureSet, quiet_feast
from sda_features.offline.compact import compact
from sda_features.offline.empty_slot import keep_readable, slot_schema
from sda_features.offline.location import Location, is_url, open_folder
from sda_features.offline.parts import add_rows, cast_ids, next_timestamp, now_or_after, stored_rows
from sda_features.offline.schema import CONTENT_HASH, EVENT_TIMESTAMP, ITEM_ID, SCHEMA, check_table, typed_ids
from sda_features.offline.table import (
    STAGED,
    commit,
    damaged_files,
    prepare_table,
    publish,
    sweep,
    write_file,
)
from sda_features.online.lease import current_lease
from sda_features.serving.layout import VERSION, IdType

REMOVED = ""  # content hash of an item that is gone


@dataclass(frozen=True)
class Staging:
    """Writes rows of a table from any process that sees its folder; they count when one process commits them."""

    location: Location
    id_type: IdType
    marker: str  # name of a file that is there

    def is_here(self) -> bool:
        """Whether this process sees the folder: another machine may have none, or another one of that name."""
        try:
            return bool(open_folder(self.location).get_file_info(self.marker).type == FileType.File)
        except OSError:
            return False

    def write(self, table: pa.Table) -> AddAction:
        """Write rows as `FolderRows.write` does, without letting them count."""
        return write_file(self.location, cast_ids(self.location, table, self.id_type), staged=True)


@dataclass(frozen=True)
class FolderRows:
    """Rows in a table of our own, whose only writer the caller is; what killed runs have left is deleted."""

    opened: FeatureSet

    def __post_init__(self) -> None:
        sweep(self.opened.folder)

    def stored(self) -> pa.Table:
        """Newest rows: item_id, adapter_version, content_hash and event_timestamp, in no order."""
        return stored_rows(self.opened.folder)

    def next_timestamp(self) -> datetime:
        """Event timestamp for new rows, later than all stored ones."""
        return next_timestamp(self.opened.folder)

    def write(self, table: pa.Table) -> None:
        """Add rows of `schema.SCHEMA`, one an item, newer than all that were stored when the run began."""
        _check_lease()
        add_rows(self.opened.folder, cast_ids(self.opened.folder, table, self.opened.id_type))

    @contextlib.contextmanager
    def staging(self) -> Iterator[Staging]:
        """Where other processes may write rows until the block ends."""
        folder = self.opened.folder
        if not is_url(folder):
            folder = Path(folder).resolve()
            folder.mkdir(parents=True, exist_ok=True)
        place = Staging(folder, self.opened.id_type, f"{STAGED}{uuid.uuid4().hex}")
        files = open_folder(folder)
        files.open_output_stream(place.marker).close()
        try:
            yield place
        finally:
            files.delete_file(place.marker)

    def commit(self, files: Sequence[AddAction]) -> None:
        """Let files count that `Staging.write` has written; they get names first, so that all that count are there."""
        _check_lease()
        prepare_table(self.opened.folder, slot_schema(self.opened.id_type, self.opened.store_dtype))
        publish(self.opened.folder, files)
        commit(self.opened.folder, files)
        keep_readable(self.opened.folder)

    def remove(self, item_ids: Collection[str | int], version: str, stamp: datetime) -> None:
        """Delete the rows of items, and put files together if there are many."""
        _check_lease()
        compact(self.opened.folder, remove=item_ids)
        keep_readable(self.opened.folder, self.opened.id_type, self.opened.store_dtype)


def _check_lease() -> None:
    """Where versions are recorded, this process still holds the slot; at a URL nothing else keeps two apart."""
    if lease := current_lease():
        lease.check()


@dataclass(frozen=True)
class FeastRows:
    """Rows in the offline store that the repo names, through Feast.

    The source (a table, a file) exists and has the columns of `schema.SCHEMA`. Such a feature set
    has no versions, and nothing keeps two writers apart.
    """

    opened: FeatureSet

    def stored(self) -> pa.Table:
        """As `FolderRows.stored`; items that are gone are left out.

        Raises:
            FeatureStoreError: Feast cannot read the source.
        """
        rows = self._newest()
        return rows.filter(pc.not_equal(rows[CONTENT_HASH], REMOVED))

    def next_timestamp(self) -> datetime:
        """As `FolderRows.next_timestamp`."""
        return now_or_after(pc.max(self._newest()[EVENT_TIMESTAMP]).as_py())

    def write(self, table: pa.Table) -> None:
        """Give the rows to Feast's `write_to_offline_store`.

        Raises:
            FeatureStoreError: the table breaks the schema, or Feast cannot write it.
        """
        check_table(table)
        table = table.set_column(0, ITEM_ID, typed_ids(table, self.opened.id_type))
        try:
            with quiet_feast():
                self.opened.store.write_to_offline_store(self.opened.view.name, table.to_pandas())
        except Exception as error:  # of whatever client the store uses
            raise self._error("write", error) from error

    def staging(self) -> AbstractContextManager[None]:
        """None: Feast's writers are asked by one process."""
        return contextlib.nullcontext()

    def commit(self, files: Sequence[AddAction]) -> None:
        """There are none to let count."""

    def remove(self, item_ids: Collection[str | int], version: str, stamp: datetime) -> None:
        """Write a row of that version and time without vectors for each item."""
        if item_ids:
            gone = {VERSION: version, CONTENT_HASH: REMOVED, EVENT_TIMESTAMP: stamp}
            rows = [{ITEM_ID: str(item_id), **gone} for item_id in item_ids]
            self.write(pa.Table.from_pylist(rows, slot_schema("string", self.opened.store_dtype)))

    def _newest(self) -> pa.Table:
        try:
            table = self.opened.pull_latest([ITEM_ID, VERSION, CONTENT_HASH], datetime.now(UTC))
            stamps = table[EVENT_TIMESTAMP].cast(pa.timestamp("us", tz="UTC"))
        except Exception as error:  # of whatever client the store uses
            raise self._error("read", error) from error
        texts = {name: table[name].cast(pa.string()) for name in (VERSION, CONTENT_HASH)}
        return pa.table({ITEM_ID: table[ITEM_ID], **texts, EVENT_TIMESTAMP: stamps})

    def _error(self, verb: str, error: Exception) -> FeatureStoreError:
        source = type(self.opened.view.batch_source).__name__
        return FeatureStoreError(
            f"Feast cannot {verb} the {source} of {self.opened.view.name} ({type(error).__name__}). Expected a source "
            "that exists and has the columns of feature_store/schema.py, and no other; see docs/scale-out.md."
        )


OfflineRows: TypeAlias = FolderRows | FeastRows


def offline_rows(opened: FeatureSet, *, repair: bool = False) -> OfflineRows:
    """The rows of a slot, wherever they are; with `repair` without those in damaged files of a table of our own."""
    if not opened.has_folder:
        return FeastRows(opened)
    if repair and (damaged := damaged_files(opened.folder)):
        prepare_table(opened.folder, SCHEMA)
        commit(opened.folder, [], damaged)
    return FolderRows(opened)
