"""Point-in-time joins of Feast views to an entity frame: keys and times decide, vectors are taken once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pa_dataset
from feast import FeatureView
from feast.infra.offline_stores.offline_utils import DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL
from feast.repo_config import RepoConfig

from sda_features.feast_plugins.local_parquet import (
    Unsupported,
    check_columns,
    key_kind,
    read_rows,
    read_source,
)
from sda_features.feast_plugins.point_in_time import NO_KEY, NOT_YET, Integers, key_codes, point_in_time_rows
from sda_features.offline.latest import epoch_nanoseconds

ENTITY_TIME = DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL


def join_features(
    config: RepoConfig, features: dict[FeatureView, list[str]], entity_df: Any, full_names: bool
) -> pa.Table:
    """An entity frame with the features of several views that have one join key in common.

    Args:
        config: of the Feast repo.
        features: views with the features asked of each.
        entity_df: pandas frame with the join key and a column `event_timestamp`.
        full_names: whether columns of features begin with their view.

    Returns:
        The rows of the frame in its order, without those whose key has rows in a view but none that
        is valid at their time; nulls where a key has none.

    Raises:
        Unsupported: the stock store has to join.
    """
    frame = _entity_table(entity_df)
    join_keys = {_join_key(view) for view in features}
    if len(join_keys) != 1:
        raise Unsupported("views with several join keys")
    (join_key,) = join_keys
    if join_key not in frame.column_names:
        raise Unsupported("an entity frame without the join key")
    if len(frame.group_by([join_key, ENTITY_TIME]).aggregate([])) < len(frame):
        # Stock Feast keeps one of them, which is a matter of its sorting.
        raise Unsupported("entity rows that repeat")
    wanted_times = epoch_nanoseconds(frame[ENTITY_TIME])
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
    return table


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
        instants = [epoch_nanoseconds(narrow[name]) for name in times]
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
