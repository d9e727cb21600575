"""Feast's file offline store for views with vectors: the same rows, without pandas and dask.

    offline_store:
      type: sda_features.feature_store.offline_store.VectorFileOfflineStore

Which rows win is worked out on keys and timestamps alone; vectors are read after that, once, and
stay Arrow buffers. What lies outside this path runs through the stock store, unchanged: sources
that are no local parquet, several join keys, on-demand views, other column types, requests that
stock Feast itself answers in a way that depends on their order. A debug log line says why.
"""

from __future__ import annotations

import functools
import itertools
import logging
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pa_dataset
from feast import FeatureView
from feast.data_source import DataSource
from feast.infra.offline_stores.dask import DaskOfflineStore, DaskOfflineStoreConfig, DaskRetrievalJob
from feast.infra.offline_stores.offline_utils import DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL
from feast.repo_config import RepoConfig
from feast.utils import _get_requested_feature_views_to_features_dict

from sda_features.feature_store.latest import latest_batches
from sda_features.feature_store.local_parquet import (
    Unsupported,
    check_columns,
    key_kind,
    read_rows,
    read_source,
    to_feast,
    zoned,
)
from sda_features.feature_store.point_in_time import NO_KEY, NOT_YET, Integers, key_codes, point_in_time_rows

logger = logging.getLogger(__name__)
T = TypeVar("T")

ENTITY_TIME = DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL


class VectorFileOfflineStoreConfig(DaskOfflineStoreConfig):  # type: ignore[misc]
    """Settings of `VectorFileOfflineStore`: there are none."""

    type: Literal["sda_features.feature_store.offline_store.VectorFileOfflineStore"] = (
        "sda_features.feature_store.offline_store.VectorFileOfflineStore"
    )


class VectorRetrievalJob(DaskRetrievalJob):  # type: ignore[misc]
    """Feast's lazy job, answered from Arrow where that is possible, else by the stock job.

    A result has one chunk a column, because Feast's own converters read the first batch of a table
    and drop the others; only a column that passes 2**31 numbers has several.
    """

    def __init__(
        self, stock: DaskRetrievalJob, fast: Callable[[], pa.Table], pull: _Pull | None = None
    ) -> None:
        super().__init__(
            stock.evaluation_function,
            stock.full_feature_names,
            stock.repo_path,
            stock.on_demand_feature_views,
            stock.metadata,
        )
        self._fast = fast
        self._pull = pull

    def read_batches(self, consume: Callable[[Iterator[pa.RecordBatch]], T]) -> T:
        """Read rows a batch at a time, so that a whole column need not be in memory.

        Args:
            consume: is given the batches; again from the first, if files were replaced meanwhile.
        """
        if self._pull is not None:
            try:
                return self._pull.latest(consume)
            except Unsupported as reason:
                logger.debug("Read through stock Feast: %s", reason)
        return consume(iter(self.to_arrow().to_batches()))

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        try:
            return self._fast()
        except (Unsupported, pa.ArrowException) as reason:
            logger.debug("Read through stock Feast: %s", reason)
        return super()._to_arrow_internal(timeout)

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()


class VectorFileOfflineStore(DaskOfflineStore):  # type: ignore[misc]
    """`type: file` with a fast path for vectors. Rows come in the order of files, or of the entity frame."""

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig, data_source: DataSource, *arguments: Any, **named: Any
    ) -> VectorRetrievalJob:
        """The newest row of each key within a time window; arguments as for stock Feast."""
        stock = DaskOfflineStore.pull_latest_from_table_or_query(config, data_source, *arguments, **named)
        pull = _Pull(config, data_source, *arguments, **named)
        return VectorRetrievalJob(stock, lambda: to_feast(pull.latest(pa.Table.from_batches)), pull)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig, data_source: DataSource, *arguments: Any, **named: Any
    ) -> VectorRetrievalJob:
        """All rows within a time window; arguments as for stock Feast."""
        stock = DaskOfflineStore.pull_all_from_table_or_query(config, data_source, *arguments, **named)
        pull = _Pull(config, data_source, *arguments, **named)
        return VectorRetrievalJob(stock, lambda: to_feast(pull.all()))

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: Any,
        *arguments: Any,
        **named: Any,
    ) -> VectorRetrievalJob:
        """The rows that were known at the times of an entity frame; arguments as for stock Feast.

        As in stock Feast, an entity row whose key has rows, but none that is valid at its time, is
        left out; one whose key has none is kept, with nulls.
        """
        stock = DaskOfflineStore.get_historical_features(
            config, feature_views, feature_refs, entity_df, *arguments, **named
        )

        def fast() -> pa.Table:
            if (
                stock.on_demand_feature_views
                or named.get("filter_by_created_timestamp")
                or len(arguments) > 3
            ):
                raise Unsupported("on-demand views, or a cut-off on created timestamps")
            features, _ = _get_requested_feature_views_to_features_dict(feature_refs, feature_views, [])
            return _join(config, features, entity_df, stock.full_feature_names)

        return VectorRetrievalJob(stock, fast)


@dataclass(frozen=True)
class _Pull:
    """Rows of a source between two instants, both included. The arguments are Feast's, with its names."""

    config: RepoConfig
    data_source: DataSource
    join_key_columns: list[str]
    feature_name_columns: list[str]
    timestamp_field: str
    created_timestamp_column: str | None = None
    start_date: datetime | None = None
    end_date: datetime | None = None

    @property
    def times(self) -> list[str]:
        """Columns of timestamps."""
        return [self.timestamp_field, *filter(None, [self.created_timestamp_column])]

    @property
    def columns(self) -> list[str]:
        """Columns of the result."""
        return list(dict.fromkeys([*self.join_key_columns, *self.feature_name_columns, *self.times]))

    def latest(self, consume: Callable[[Iterator[pa.RecordBatch]], T]) -> T:
        """`consume` the newest row of each key."""

        def read(dataset: pa_dataset.FileSystemDataset) -> T:
            self._check(dataset)
            created = self.created_timestamp_column
            if created and dataset.to_table(columns=[created])[created].null_count:
                raise Unsupported("nulls among created timestamps")
            batches = latest_batches(
                dataset,
                keys=self.join_key_columns,
                timestamp=self.timestamp_field,
                columns=self.columns,
                created=created,
                start=self.start_date,
                end=self.end_date,
            )
            # An empty batch first: the schema is known without a row.
            schema = pa.schema([dataset.schema.field(name) for name in self.columns])
            return consume(itertools.chain(schema.empty_table().to_batches(), batches))

        return read_source(self.data_source, self.config.repo_path, read)

    def all(self) -> pa.Table:
        """All rows."""

        def read(dataset: pa_dataset.FileSystemDataset) -> pa.Table:
            self._check(dataset)
            time = pc.field(self.timestamp_field)
            time = time.cast(zoned(dataset.schema.field(self.timestamp_field).type))
            within = [time >= self.start_date] if self.start_date else []
            within += [time <= self.end_date] if self.end_date else []
            return dataset.to_table(columns=self.columns, filter=functools.reduce(operator.and_, within))

        return read_source(self.data_source, self.config.repo_path, read)

    def _check(self, dataset: pa_dataset.FileSystemDataset) -> None:
        window = [instant for instant in (self.start_date, self.end_date) if instant is not None]
        if not window or any(instant.tzinfo is None for instant in window):
            raise Unsupported("a window without bounds or time zone")
        if len(self.join_key_columns) != 1 or not self.feature_name_columns:
            raise Unsupported("no join key, several of them, or no features")
        check_columns(dataset, self.join_key_columns[0], self.times, self.feature_name_columns)


def _join(
    config: RepoConfig, features: dict[FeatureView, list[str]], entity_df: Any, full_names: bool
) -> pa.Table:
    """An entity frame with the features of several views that have one join key in common."""
    frame = _entity_table(entity_df)
    join_keys = {_join_key(view) for view in features}
    if len(join_keys) != 1:
        raise Unsupported("views with several join keys")
    (join_key,) = join_keys
    if join_key not in frame.column_names:
        raise Unsupported("an entity frame without the join key")
    _check_repeats(frame, join_key)
    wanted_times = _nanoseconds(frame[ENTITY_TIME])
    kept = np.ones(len(frame), np.bool_)
    found: list[tuple[str, pa.Table, str, Integers]] = []
    for view, names in features.items():
        prefix = f"{view.projection.name_to_use()}__" if full_names else ""
        rows, index = _view_rows(config, view, list(dict.fromkeys(names)), frame[join_key], wanted_times)
        kept &= index != NOT_YET
        found += [(prefix + name, rows, name, index) for name in dict.fromkeys(names)]
    names = [name for name, *_ in found]
    if len({*frame.column_names, *names}) != len(frame.column_names) + len(names):
        raise Unsupported("columns of one name")
    (positions,) = kept.nonzero()
    table = frame if kept.all() else frame.take(pa.array(positions))
    for name, rows, feature, index in found:
        chosen = index[positions]
        column = rows[feature].take(pa.array(chosen, mask=chosen == NO_KEY))
        table = table.append_column(name, column)
    return to_feast(table)


def _view_rows(
    config: RepoConfig,
    view: FeatureView,
    features: list[str],
    wanted_keys: pa.ChunkedArray,
    wanted_times: Integers,
) -> tuple[pa.Table, Integers]:
    """The source rows of a view that any request needs, and for each request which of them it is."""
    source = view.batch_source
    columns = {mapped: column for column, mapped in source.field_mapping.items()}
    (entity_column,) = view.entity_columns
    key = columns.get(entity_column.name, entity_column.name)
    times = [source.timestamp_field, *filter(None, [source.created_timestamp_column])]
    if {*source.field_mapping, *source.field_mapping.values()} & {*times} or {*features} & {*times, key}:
        raise Unsupported("a renamed or requested timestamp or key")

    def read(dataset: pa_dataset.FileSystemDataset) -> tuple[pa.Table, Integers]:
        if {*source.field_mapping.values()} & {*dataset.schema.names}:
            raise Unsupported("a field mapping onto a column that exists")
        wide = [columns.get(feature, feature) for feature in features]
        check_columns(dataset, key, times, wide)
        narrow = dataset.to_table(columns=[key, *times])
        if any(narrow[name].null_count for name in times):
            raise Unsupported("nulls among timestamps")
        if key_kind(narrow[key].type) != key_kind(wanted_keys.type):
            raise Unsupported("keys of two types")
        instants = [_nanoseconds(narrow[name]) for name in times]
        codes, wanted_codes = key_codes(narrow[key], wanted_keys)
        index = point_in_time_rows(
            codes, instants[0], instants[-1], wanted_codes, wanted_times, view.ttl or None
        )
        needed = np.unique(index[index >= 0])
        rows = read_rows(dataset, needed, wide).rename_columns(features)
        return rows, np.where(index >= 0, np.searchsorted(needed, index), index)

    return read_source(source, config.repo_path, read)


def _entity_table(entity_df: Any) -> pa.Table:
    """An entity frame as Arrow, its times in UTC."""
    if not isinstance(entity_df, pd.DataFrame) or not len(entity_df):
        raise Unsupported("no entity frame in memory, or an empty one")
    times = entity_df.get(ENTITY_TIME)
    if not pd.api.types.is_datetime64_any_dtype(times) or times.isna().any():
        raise Unsupported(f"an entity frame without times in {ENTITY_TIME}")
    frame = entity_df.assign(**{ENTITY_TIME: pd.to_datetime(times, utc=True)})
    return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)


def _join_key(view: FeatureView) -> str:
    """Column of the entity frame that holds the keys of a view."""
    if len(view.entity_columns) != 1:
        raise Unsupported("a view without an entity, or with several")
    name = view.entity_columns[0].name
    return str(view.projection.join_key_map.get(name, name))


def _check_repeats(frame: pa.Table, join_key: str) -> None:
    """Of entity rows with one key and time stock Feast keeps one, and which is a matter of its sorting."""
    if len(frame.group_by([join_key, ENTITY_TIME]).aggregate([])) < len(frame):
        raise Unsupported("entity rows that repeat")


def _nanoseconds(column: pa.ChunkedArray) -> Integers:
    """Instants as nanoseconds since 1970; without a time zone they are in UTC."""
    return column.cast(pa.timestamp("ns", tz=column.type.tz)).cast(pa.int64()).to_numpy()  # type: ignore[no-any-return]
