"""The offline rows of a slot as `materialize` reads and writes them: a table of our own, or Feast's own store.

A warehouse (BigQuery, Snowflake, ...) or a single file is reached through Feast alone, with
`write_to_offline_store`. Feast deletes nothing there, so an item that is gone gets a newer row
without vectors and without a content hash.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sda_features.errors import FeatureStoreError
from sda_features.feature_store.repo import FeatureSet, quiet_feast
from sda_features.offline.compact import compact
from sda_features.offline.empty_slot import keep_readable
from sda_features.offline.parts import add_rows, cast_ids, next_timestamp, stored_rows
from sda_features.offline.schema import (
    CONTENT_HASH,
    EVENT_TIMESTAMP,
    ID_TYPES,
    ITEM_ID,
    SCHEMA,
    check_table,
    vectors_table,
)
from sda_features.offline.table import commit, damaged_files, prepare_table, sweep
from sda_features.serving.layout import VERSION, parse_item_id

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
REMOVED = ""  # content hash of an item that is gone


class OfflineRows(Protocol):
    """What `materialize` does with the rows of a slot."""

    def stored(self) -> pa.Table:
        """Newest rows: item_id, adapter_version, content_hash and event_timestamp, in no order."""

    def next_timestamp(self) -> datetime:
        """Event timestamp for new rows, later than all stored ones."""

    def write(self, table: pa.Table) -> None:
        """Add rows of `schema.SCHEMA`, one an item."""

    def remove(self, item_ids: Collection[str | int], version: str, stamp: datetime) -> None:
        """Take items out, with rows of that version and time where nothing can be deleted."""


def offline_rows(opened: FeatureSet, *, repair: bool = False) -> OfflineRows:
    """The rows of a slot, wherever they are; with `repair` without those in damaged files of a table of our own."""
    if not opened.has_folder:
        return FeastRows(opened)
    if repair and (damaged := damaged_files(opened.folder)):
        prepare_table(opened.folder, SCHEMA)
        commit(opened.folder, [], damaged)
    return FolderRows(opened)


@dataclass(frozen=True)
class FolderRows:
    """Rows in a table of our own, whose only writer the caller is; what killed runs have left is deleted."""

    opened: FeatureSet

    def __post_init__(self) -> None:
        sweep(self.opened.folder)

    def stored(self) -> pa.Table:
        """See `OfflineRows`."""
        return stored_rows(self.opened.folder)

    def next_timestamp(self) -> datetime:
        """See `OfflineRows`."""
        return next_timestamp(self.opened.folder)

    def write(self, table: pa.Table) -> None:
        """Add a file; its rows are newer than all that were stored when the run began."""
        add_rows(self.opened.folder, cast_ids(self.opened.folder, table, self.opened.id_type))

    def remove(self, item_ids: Collection[str | int], version: str, stamp: datetime) -> None:
        """Delete the rows, and put files together if there are many."""
        compact(self.opened.folder, remove=item_ids)
        keep_readable(self.opened.folder, self.opened.id_type, self.opened.store_dtype)


@dataclass(frozen=True)
class FeastRows:
    """Rows in the offline store that the repo names, through Feast.

    The source (a table, a file) exists and has the columns of `schema.SCHEMA`. Such a feature set
    has no versions, and nothing keeps two writers apart.
    """

    opened: FeatureSet

    def stored(self) -> pa.Table:
        """See `OfflineRows`; items that are gone are left out.

        Raises:
            FeatureStoreError: Feast cannot read the source.
        """
        rows = self._newest()
        return rows.filter(pc.not_equal(rows[CONTENT_HASH], REMOVED))

    def next_timestamp(self) -> datetime:
        """See `OfflineRows`."""
        now, newest = datetime.now(UTC), pc.max(self._newest()[EVENT_TIMESTAMP]).as_py()
        return now if newest is None else max(now, newest + timedelta(microseconds=1))

    def write(self, table: pa.Table) -> None:
        """Give the rows to Feast's `write_to_offline_store`.

        Raises:
            FeatureStoreError: the table breaks the schema, or Feast cannot write it.
        """
        check_table(table)
        ids = [parse_item_id(item_id, self.opened.id_type) for item_id in table[ITEM_ID].to_pylist()]
        table = table.set_column(0, ITEM_ID, pa.array(ids, ID_TYPES[self.opened.id_type]))
        try:
            with quiet_feast():
                self.opened.store.write_to_offline_store(self.opened.view.name, table.to_pandas())
        except Exception as error:  # of whatever client the store uses
            raise self._error("write", error) from error

    def remove(self, item_ids: Collection[str | int], version: str, stamp: datetime) -> None:
        """Write a row without vectors for each item."""
        if not item_ids:
            return
        nothing, none = np.zeros((len(item_ids), 0), np.float32), np.zeros(len(item_ids), np.bool_)
        self.write(
            vectors_table(
                [str(item_id) for item_id in item_ids],
                text=nothing,
                text_found=none,
                image=nothing,
                image_found=none,
                adapter_version=version,
                content_hashes=[REMOVED] * len(item_ids),
                event_timestamp=stamp,
                store_dtype=self.opened.store_dtype,
            )
        )

    def _newest(self) -> pa.Table:
        source, store = self.opened.view.batch_source, self.opened.store
        try:
            with quiet_feast():
                from feast.infra.offline_stores.offline_utils import get_offline_store_from_config

                job = get_offline_store_from_config(
                    store.config.offline_store
                ).pull_latest_from_table_or_query(
                    config=store.config,
                    data_source=source,
                    join_key_columns=[ITEM_ID],
                    feature_name_columns=[VERSION, CONTENT_HASH],
                    timestamp_field=EVENT_TIMESTAMP,
                    created_timestamp_column=source.created_timestamp_column or None,
                    start_date=EPOCH,
                    end_date=datetime.now(UTC),
                )
                table = job.to_arrow()
        except Exception as error:  # of whatever client the store uses
            raise self._error("read", error) from error
        stamps = table[EVENT_TIMESTAMP].cast(pa.timestamp("us", tz="UTC"))
        texts = {name: table[name].cast(pa.string()) for name in (VERSION, CONTENT_HASH)}
        return pa.table({ITEM_ID: table[ITEM_ID], **texts, EVENT_TIMESTAMP: stamps})

    def _error(self, verb: str, error: Exception) -> FeatureStoreError:
        source = type(self.opened.view.batch_source).__name__
        return FeatureStoreError(
            f"Feast cannot {verb} the {source} of {self.opened.view.name} ({type(error).__name__}). Expected a source "
            "that exists and has the columns of feature_store/schema.py, and no other; see docs/scale-out.md."
        )
