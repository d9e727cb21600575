"""A batch engine for Feast that writes vectors to Redis without a Python float.

    batch_engine: {type: sda_features.feast_plugins.engine.VectorEngine}

It is Feast's local engine, and stays so for whatever lies outside the fast path: other online
stores, several join keys, features of other types, transformations. What is stored
is the same either way. A log line says why a view took Feast's path.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pa_dataset
import redis
from feast import FeatureView
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.local.compute import LocalComputeEngine, LocalComputeEngineConfig
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.offline_stores.dask import DaskOfflineStore
from feast.infra.online_stores.redis import RedisOnlineStore
from feast.types import Array, Bytes, Float32, String

from sda_features.feast_plugins.local_parquet import Unsupported, check_columns, read_source
from sda_features.feast_plugins.offline_store import VectorFileOfflineStore
from sda_features.offline.latest import latest_batches
from sda_features.offline.schema import ID_TYPES
from sda_features.online.commands import UnsupportedRows, value_kind
from sda_features.online.lease import RETRIES, TIMEOUT, current_lease
from sda_features.online.writer import OnlineView, write_batches
from sda_features.serving import layout
from sda_features.serving.codec import ValueKind
from sda_features.serving.connection import RedisAddress

logger = logging.getLogger(__name__)

_KINDS: dict[Any, ValueKind] = {Array(Float32): "floats", Bytes: "bytes", String: "string"}
_TIME = "event_timestamp"


class VectorEngineConfig(LocalComputeEngineConfig):  # type: ignore[misc]
    """Settings of `VectorEngine` in feature_store.yaml: those of Feast's local engine."""

    type: str = "sda_features.feast_plugins.engine.VectorEngine"


class VectorEngine(LocalComputeEngine):  # type: ignore[misc]
    """Feast's local engine, with a fast path into Redis for views of vectors, bytes and strings."""

    def _materialize_one(self, registry: Any, task: MaterializationTask, **options: Any) -> Any:
        context = self.get_execution_context(registry, task)
        job_id = f"{task.feature_view.name}-{task.start_time}-{task.end_time}"
        try:
            rows = self._write(task, [entity.join_key for entity in context.entity_defs])
        except (Unsupported, UnsupportedRows, pa.ArrowException) as reason:
            # Rows that were written before it are those that Feast writes, too.
            logger.info("%s goes through Feast's local engine: %s", task.feature_view.name, reason)
            return super()._materialize_one(registry, task, **options)
        except Exception as error:
            return LocalMaterializationJob(job_id, MaterializationJobStatus.ERROR, error)
        logger.info("%s: %d rows written", task.feature_view.name, rows)
        return LocalMaterializationJob(job_id, MaterializationJobStatus.SUCCEEDED)

    def _write(self, task: MaterializationTask, join_keys: list[str]) -> int:
        """Write the newest rows of a view; return how many were newer than what was stored.

        Raises:
            Unsupported, UnsupportedRows, pa.ArrowException: stock Feast has to do it.
        """
        self._check_stores()
        view = _online_view(self.repo_config.project, task, join_keys)
        columns, created = _source_columns(task.feature_view, view)
        config, lease = self.repo_config.online_store, current_lease()
        renamed = [view.join_key, *view.features, _TIME]

        def write(batches: Iterable[pa.RecordBatch]) -> int:
            with contextlib.nullcontext(lease.client) if lease else _client(config) as client:
                return write_batches(
                    client,
                    view,
                    (batch.rename_columns(renamed) for batch in batches),
                    timestamp=_TIME,
                    expire=config.key_ttl_seconds,
                    overwrite=config.skip_dedup,
                    guard=lease.check if lease else None,
                )

        def write_dataset(dataset: pa_dataset.FileSystemDataset) -> int:
            times = [columns[-1], *([created] if created else [])]
            check_columns(dataset, columns[0], times, columns[1:-1])
            _check_types(dataset.schema, columns, task.feature_view, view)
            if created and dataset.to_table(columns=[created])[created].null_count:
                raise Unsupported("nulls among created timestamps")
            return write(
                latest_batches(
                    dataset,
                    keys=columns[:1],
                    timestamp=columns[-1],
                    columns=columns,
                    created=created,
                    start=task.start_time,
                    end=task.end_time,
                    # Where rows tie, Feast keeps the last, or the first of the smaller tables it sorts itself.
                    keep="last" if self.repo_config.materialization_config.pull_latest_features else "first",
                )
            )

        source = task.feature_view.batch_source
        if type(self.offline_store) in (DaskOfflineStore, VectorFileOfflineStore):
            return read_source(source, self.repo_config.repo_path, write_dataset)
        job = self.offline_store.pull_latest_from_table_or_query(
            config=self.repo_config,
            data_source=source,
            join_key_columns=columns[:1],
            feature_name_columns=columns[1:-1],
            timestamp_field=columns[-1],
            created_timestamp_column=created,
            start_date=task.start_time,
            end_date=task.end_time,
        )
        table = job.to_arrow()
        _check_types(table.schema, columns, task.feature_view, view)
        if pc.count_distinct(table[columns[0]], mode="all").as_py() < len(table):
            raise Unsupported("several rows of one key")
        return write(table.select(columns).to_batches())

    def _check_stores(self) -> None:
        store, config = self.online_store, self.repo_config
        if not isinstance(store, RedisOnlineStore):
            raise Unsupported(f"the online store is {type(store).__name__}")
        if type(store).online_write_batch is not RedisOnlineStore.online_write_batch:
            raise Unsupported(f"{type(store).__name__} writes in its own way")
        versioned = config.registry.enable_online_feature_view_versioning
        if config.entity_key_serialization_version != 3 or versioned:
            raise Unsupported("another layout of keys")


def _client(config: Any) -> redis.Redis:
    """A client with time-outs, which Feast's own has not."""
    address = RedisAddress.parse(
        config.connection_string, config.redis_type.value, sentinel_master=config.sentinel_master
    )
    return address.connect(timeout=TIMEOUT, retries=RETRIES)


def _online_view(project: str, task: MaterializationTask, join_keys: list[str]) -> OnlineView:
    """The view of a task, if it is one that the fast path writes."""
    view = task.feature_view
    if type(view) is not FeatureView or not task.only_latest:
        raise Unsupported(f"a {type(view).__name__}, or more than its newest rows")
    special = ("offline", "enable_validation", "feature_transformation", "stream_source", "source_views")
    if set_ones := [name for name in special if getattr(view, name, None)]:
        raise Unsupported(f"a view with {set_ones[0]}")
    if not view.online or view.batch_source is None:
        raise Unsupported("a view without an online store or a source")
    if len(join_keys) != 1 or [column.name for column in view.entity_columns] != join_keys:
        raise Unsupported(f"join keys {join_keys}")
    id_type = layout.ID_TYPES.get(view.entity_columns[0].dtype.to_value_type().name)
    if id_type is None:
        raise Unsupported(f"keys of type {view.entity_columns[0].dtype}")
    for feature in view.features:
        if feature.dtype not in _KINDS or feature.vector_index:
            raise Unsupported(f"the feature {feature.name} of type {feature.dtype}")
    names = tuple(feature.name for feature in view.features)
    return OnlineView(project, view.name, names, join_keys[0], id_type)


def _source_columns(view: FeatureView, online: OnlineView) -> tuple[list[str], str | None]:
    """Columns of the source: the key, the features and the event time; and that of the created time."""
    source = view.batch_source
    original = {name: column for column, name in source.field_mapping.items()}
    names = [online.join_key, *online.features, source.timestamp_field]
    columns = [original.get(name, name) for name in names]
    if len(set(columns)) < len(columns) or _TIME in names[:-1]:
        raise Unsupported("one column that is several features, or a feature named like the event time")
    created = source.created_timestamp_column or None
    return columns, original.get(created, created) if created else None


def _check_types(schema: pa.Schema, columns: list[str], view: FeatureView, online: OnlineView) -> None:
    """Check that columns have the types that the view declares."""
    key = schema.field(columns[0]).type
    if key != ID_TYPES[online.id_type]:
        raise Unsupported(f"keys of type {key}, declared as {online.id_type}")
    if not pa.types.is_timestamp(schema.field(columns[-1]).type):
        raise Unsupported(f"timestamps of type {schema.field(columns[-1]).type}")
    for column, feature in zip(columns[1:-1], view.features, strict=True):
        if value_kind(schema.field(column).type) != _KINDS[feature.dtype]:
            raise Unsupported(f"{feature.name} of type {schema.field(column).type}")
