"""Feast's file offline store for views with vectors: the same rows, without pandas and dask.

    offline_store:
      type: sda_features.feast_plugins.offline_store.VectorFileOfflineStore

Which rows win is worked out on keys and timestamps alone; vectors are read after that, once, and
stay Arrow buffers. What lies outside this path runs through the stock store, unchanged: sources
that are no local parquet, several join keys, on-demand views, other column types, requests that
stock Feast itself answers in a way that depends on their order. A debug log line says why.
"""

from __future__ import annotations

import functools
import logging
import operator
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pa_dataset
from feast import FeatureView
from feast.data_source import DataSource
from feast.infra.offline_stores.dask import DaskOfflineStore, DaskOfflineStoreConfig, DaskRetrievalJob
from feast.repo_config import RepoConfig
from feast.utils import _get_requested_feature_views_to_features_dict

from sda_features.feast_plugins.historical import join_features
from sda_features.feast_plugins.local_parquet import Unsupported, check_columns, read_source, to_feast, zoned
from sda_features.offline.latest import latest_rows

logger = logging.getLogger(__name__)


class VectorFileOfflineStoreConfig(DaskOfflineStoreConfig):  # type: ignore[misc]
    """Settings of `VectorFileOfflineStore`: there are none."""

    type: str = "sda_features.feast_plugins.offline_store.VectorFileOfflineStore"


class VectorRetrievalJob(DaskRetrievalJob):  # type: ignore[misc]
    """Feast's lazy job, answered from Arrow where that is possible, else by the stock job."""

    def __init__(self, stock: DaskRetrievalJob, fast: Callable[[], pa.Table]) -> None:
        self.__dict__.update(stock.__dict__)
        self._fast = fast

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        try:
            return to_feast(self._fast())
        except (Unsupported, pa.ArrowException) as reason:
            logger.debug("Read through stock Feast: %s", reason)
        return super()._to_arrow_internal(timeout)

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()


class VectorFileOfflineStore(DaskOfflineStore):  # type: ignore[misc]
    """`type: file` with a fast path for vectors. Rows come in the order of files, or of the entity frame."""

    @staticmethod
    def pull_latest_from_table_or_query(*arguments: Any, **named: Any) -> VectorRetrievalJob:
        """The newest row of each key within a time window; arguments as for stock Feast."""
        stock = DaskOfflineStore.pull_latest_from_table_or_query(*arguments, **named)
        return VectorRetrievalJob(stock, _Pull(*arguments, **named).latest)

    @staticmethod
    def pull_all_from_table_or_query(*arguments: Any, **named: Any) -> VectorRetrievalJob:
        """All rows within a time window; arguments as for stock Feast."""
        stock = DaskOfflineStore.pull_all_from_table_or_query(*arguments, **named)
        return VectorRetrievalJob(stock, _Pull(*arguments, **named).all)

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: Any,
        *arguments: Any,
        **named: Any,
    ) -> VectorRetrievalJob:
        """The rows known at the times of an entity frame, see `join_features`; arguments as for stock Feast."""
        stock = DaskOfflineStore.get_historical_features(
            config, feature_views, feature_refs, entity_df, *arguments, **named
        )

        def fast() -> pa.Table:
            created_cut_off = named.get("filter_by_created_timestamp") or len(arguments) > 3
            if stock.on_demand_feature_views or created_cut_off:
                raise Unsupported("on-demand views, or a cut-off on created timestamps")
            features, _ = _get_requested_feature_views_to_features_dict(feature_refs, feature_views, [])
            return join_features(config, features, entity_df, stock.full_feature_names)

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

    def latest(self) -> pa.Table:
        """The newest row of each key."""

        def read(dataset: pa_dataset.FileSystemDataset) -> pa.Table:
            self._check(dataset)
            created = self.created_timestamp_column
            if created and dataset.to_table(columns=[created])[created].null_count:
                raise Unsupported("nulls among created timestamps")
            return latest_rows(
                dataset,
                keys=self.join_key_columns,
                timestamp=self.timestamp_field,
                columns=self.columns,
                created=created,
                start=self.start_date,
                end=self.end_date,
            )

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
