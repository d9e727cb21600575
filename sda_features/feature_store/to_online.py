"""From the offline to the online store: Feast with the fast engine, a look before and a check after."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from tqdm import tqdm

from sda_features.errors import FeatureStoreError, OnlineStoreError
from sda_features.feature_store.matrices import pull_latest
from sda_features.feature_store.online_rows import (
    check_online_store,
    delete_online,
    missing_online,
    online_server,
)
from sda_features.feature_store.repo import EPOCH, FeatureSet, open_feature_set, quiet_feast
from sda_features.offline.parts import stored_rows
from sda_features.offline.schema import EVENT_TIMESTAMP, ID_TYPES, ITEM_ID
from sda_features.online import writer
from sda_features.serving import layout
from sda_features.serving.connection import redis_errors

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

ENGINE = "sda_features.feast_plugins.engine.VectorEngine"  # imported by Feast, when it needs it
BATCH_ROWS = 10_000
SAMPLE = 100
ATTEMPTS = 3  # to write what did not arrive


@dataclass(frozen=True)
class Materialized:
    """What `materialize_view` did.

    Attributes:
        view: name of the feature view.
        rows: items of the view up to `end`.
        checked: items whose row was looked up in the online store afterwards.
        end: newest event timestamp that was considered.
    """

    view: str
    rows: int
    checked: int
    end: datetime


def materialize_view(
    repo_path: Path | str,
    feature_set: str,
    end: datetime | None = None,
    *,
    slot: int = 1,
    progress: bool = False,
) -> Materialized:
    """Copy the newest row of each item of a slot into the online store, through Feast.

    Registry and stores are those of the repo's feature_store.yaml. A Redis server is looked up
    first, and afterwards each item's version and event timestamp are read back from it; what did not
    arrive is written again. With another online store, Feast reads back a sample of items instead.

    Args:
        repo_path: an applied Feast repo.
        feature_set: name of the feature set.
        end: rows after this instant are left out, with a time zone; None: now.
        slot: number of the slot.
        progress: show a bar on standard error.

    Raises:
        FeatureStoreError: the repo is not applied, lacks the view, or there are no rows.
        OnlineStoreError: the online store cannot be reached, or rows did not arrive.
    """
    end = end or datetime.now(UTC)
    opened = open_feature_set(repo_path, feature_set, slot)
    address = check_online_store(opened)
    rows = _newest_rows(opened, end)
    if not len(rows):
        raise FeatureStoreError(
            f"There are no rows of {opened.view.name} up to {end.isoformat()}. "
            "Write them with `sda-features materialize`."
        )
    for _ in range(ATTEMPTS):
        with (
            redis_errors(address or opened.config.online_type),
            tqdm(desc="writing online", total=len(rows), unit="item", disable=not progress) as bar,
            quiet_feast(),
        ):
            told = writer.progress.set(bar.update)
            try:
                _materialize(opened, end)
            finally:
                writer.progress.reset(told)
        missing = _missing(opened, rows) if address else []
        if not missing:
            break
    else:
        raise OnlineStoreError(
            f"Expected {len(rows)} items of {opened.view.name} in Redis at {address}, but {len(missing)} did not "
            f"arrive, such as {rows[ITEM_ID][missing[0]].as_py()!r}. Does the server evict keys "
            "(maxmemory-policy), or does key_ttl_seconds expire them? Correct that and materialize again."
        )
    checked = len(rows) if address else _check_sample(opened, rows)
    return Materialized(opened.view.name, len(rows), checked, end)


def _materialize(opened: FeatureSet, end: datetime) -> None:
    """Copy rows with the fast engine, which is Feast's local one wherever it is not faster."""
    from feast import FeatureStore
    from feast.errors import FeastError
    from feast.repo_config import load_repo_config

    store, view = opened.store, opened.view
    if not view.online:  # neither the repo's offline store nor its engine may be able to read the folder
        store = FeatureStore(store.repo_path, load_repo_config(store.repo_path, opened.config.path))
        store.config.offline_config = "dask"
        store.config.batch_engine_config = "local"
    engine = store.config.batch_engine_config
    settings = engine if isinstance(engine, dict) else {"type": engine}
    if settings["type"] == "local":
        store.config.batch_engine_config = {**settings, "type": ENGINE}
    # Without a batch size Feast writes the first Arrow chunk of a table and drops the others.
    batches = store.config.materialization_config
    batches.online_write_batch_size = batches.online_write_batch_size or BATCH_ROWS
    try:
        if view.online:
            store.materialize(EPOCH, end, feature_views=[view.name])
        else:
            _materialize_hidden(store, view, end)
    except FeastError as error:
        raise FeatureStoreError(
            f"Feast could not materialize {opened.view.name}: {error}. If an entity is missing, import it by name in "
            "the file that defines the view, as `sda-features init` does, and run `feast apply`."
        ) from error


def _materialize_hidden(store: FeatureStore, view: FeatureView, end: datetime) -> None:
    """Write a view that the repo's own `feast materialize` leaves out."""
    from feast.infra.provider import get_provider

    view = copy.copy(view)
    view.online = True
    provider = get_provider(store.config)
    provider.update_infra(store.project, [], [view], [], [], partial=True)  # tables of SQL stores
    provider.materialize_single_feature_view(
        store.config, view, EPOCH, end, store.registry, store.project, lambda rows: tqdm(disable=True)
    )


def _newest_rows(opened: FeatureSet, end: datetime) -> pa.Table:
    """Ids, versions and event timestamps of the newest rows up to `end`."""
    if opened.has_folder:
        return stored_rows(opened.folder, end=end)  # some hundred times faster than Feast
    columns = opened.source_columns(opened.join_key, layout.VERSION)
    table = pull_latest(opened, columns, end)
    ids, versions = table.select(columns).columns
    times = table[opened.view.batch_source.timestamp_field].cast(pa.timestamp("us", tz="UTC"))
    narrow = [ids.cast(ID_TYPES[opened.id_type]), versions.cast(pa.string()), times]
    return pa.table(narrow, [ITEM_ID, layout.VERSION, EVENT_TIMESTAMP])


def _missing(opened: FeatureSet, rows: pa.Table) -> list[int]:
    """Positions of the rows that are not in Redis; those of another version are deleted, to be written again.

    A server that failed over has lost its last seconds, and a writer that was overtaken may have
    left rows that are newer than ours.
    """
    with online_server(opened) as server:
        assert server is not None
        missing, foreign = missing_online(server, opened, rows)
    if foreign:
        delete_online(opened, rows[ITEM_ID].take(pa.array(foreign)).to_pylist())
    return missing


def _check_sample(opened: FeatureSet, rows: pa.Table) -> int:
    """A sample of rows must come back from Feast's own reader with a version."""
    step = max(1, len(rows) // SAMPLE)
    ids = rows[ITEM_ID].to_pylist()[::step]
    with quiet_feast():
        found = opened.store.get_online_features(
            features=[f"{opened.view.name}:{layout.VERSION}"],
            entity_rows=[{opened.join_key: item_id} for item_id in ids],
        ).to_dict()[layout.VERSION]
    absent = [item_id for item_id, version in zip(ids, found, strict=True) if version is None]
    if absent:
        raise OnlineStoreError(
            f"Expected {len(ids)} sampled items of {opened.view.name} in the online store "
            f"({opened.config.online_type}), but {len(absent)} did not arrive, such as {absent[0]!r}. "
            "Materialize again with `feast materialize` to see Feast's own messages."
        )
    return len(ids)
