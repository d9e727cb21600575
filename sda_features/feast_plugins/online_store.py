"""Feast's Redis online store for views with vectors: the same answers, without a Python object a number.

    online_store:
      type: sda_features.feast_plugins.online_store.VectorRedisOnlineStore
      connection_string: localhost:6379

`FeatureStore.get_online_features` keeps the bytes that Redis sent. `to_matrix` of its response makes
one float32 matrix of them; `to_dict`, `to_df` and `proto` give what stock Feast gives, when somebody
asks. Requests outside this path run through the stock store, unchanged: a cluster, several join
keys, on-demand views, views without an entity, precomputed services, ids of another type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from feast import FeatureView, metrics, utils
from feast.feature_service import FeatureService
from feast.infra.online_stores.redis import RedisClient, RedisOnlineStore, RedisOnlineStoreConfig, RedisType
from feast.infra.registry.base_registry import BaseRegistry
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse
from feast.repo_config import RepoConfig
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType

from sda_features.feast_plugins.online_response import Recorded, VectorOnlineResponse, rows_of
from sda_features.online.lease import TIMEOUT
from sda_features.serving import aio, layout, wire
from sda_features.serving.blocks import Block
from sda_features.serving.wire import Row


class VectorRedisOnlineStoreConfig(RedisOnlineStoreConfig):  # type: ignore[misc]
    """Settings of `VectorRedisOnlineStore`: those of Feast's Redis store."""

    type: str = "sda_features.feast_plugins.online_store.VectorRedisOnlineStore"


class VectorRedisOnlineStore(RedisOnlineStore):  # type: ignore[misc]
    """`type: redis` with fast reads; writes and the layout in Redis are Feast's own."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[tuple[bytes, ...], tuple[int, ...]] = {}  # of the values of fields, as last seen

    @staticmethod
    def _parse_connection_string(connection_string: str) -> tuple[list[dict[str, str]], dict[str, Any]]:
        """Feast's reading of it, with a limit for clients, asyncio's too, that would wait for ever for a reply."""
        nodes, options = RedisOnlineStore._parse_connection_string(connection_string)
        return nodes, {"socket_timeout": TIMEOUT, **options}

    def get_online_features(self, *arguments: Any, **named: Any) -> VectorOnlineResponse:
        """Features of entities; arguments and errors as in stock Feast."""
        request = _request(*arguments, **named)
        if request is None:
            stock = super().get_online_features(*arguments, **named)
            return VectorOnlineResponse(stock.proto, stock._feature_types)
        server = self._get_client(request.config.online_store)
        server.connection_pool.connection_kwargs.setdefault("socket_read_size", wire.READ_BYTES)
        rows, _ = wire.fetch_fields(server, request.keys, request.fields, self._sizes.get(request.fields, ()))
        self._sizes[request.fields] = _sizes(rows)
        return request.response(rows)

    async def get_online_features_async(self, *arguments: Any, **named: Any) -> VectorOnlineResponse:
        """`get_online_features` for asyncio."""
        request = _request(*arguments, **named)
        if request is None:
            stock = await super().get_online_features_async(*arguments, **named)
            return VectorOnlineResponse(stock.proto, stock._feature_types)
        server = await self._get_client_async(request.config.online_store)
        rows, _ = await aio.fetch_fields(server, request.keys, request.fields)
        return request.response(rows)


@dataclass(frozen=True)
class _Request:
    """A request of n ids for features of views that share one entity."""

    config: RepoConfig
    join_key: str
    value_type: ValueType
    ids: Sequence[str | int]  # n; they may repeat
    keys: Sequence[bytes]  # of the different ids, in the order of their first appearance
    views: Sequence[tuple[FeatureView, Sequence[str]]]  # with the features asked of each
    fields: tuple[bytes, ...]  # of all views, one after the other: features, then the event timestamp
    names: frozenset[str]  # of the features in the response
    full_names: bool  # whether these begin with the view
    with_versions: bool  # whether the response says which version of each view was read

    def response(self, rows: list[Row] | Block) -> VectorOnlineResponse:
        """The response made of the rows of the different ids."""
        all_rows: Sequence[Row] | Block = rows
        if len(rows) < len(self.ids):
            row_of = dict(zip(dict.fromkeys(self.ids), rows_of(rows), strict=True))
            all_rows = [row_of[item_id] for item_id in self.ids]
        features: dict[str, int] = {}
        position = 0
        for view, asked in self.views:
            prefix = f"{view.projection.name_to_use()}__" if self.full_names else ""
            features |= {f"{prefix}{feature}": position + offset for offset, feature in enumerate(asked)}
            position += len(asked) + 1
        recorded = Recorded(self.join_key, self.ids, features, all_rows, lambda: self._stock_proto(rows))
        return VectorOnlineResponse.lazy(recorded, RedisOnlineStore._build_feature_types(list(self.views)))

    def _stock_proto(self, rows: list[Row] | Block) -> GetOnlineFeaturesResponse:
        """What stock Feast makes of these rows: its own code runs, on the bytes that came."""
        proto = GetOnlineFeaturesResponse(results=[])
        keys = {self.join_key: python_values_to_proto_values(list(self.ids), self.value_type)}
        utils._populate_result_rows_from_columnar(proto, keys)
        _Replay(self.keys, self.fields, rows_of(rows))._read_features_per_fv(
            self.config,
            [(view, list(asked)) for view, asked in self.views],
            keys,
            {entity: self.join_key for view, _ in self.views for entity in view.entities},
            proto,
            self.full_names,
            self.with_versions,
        )
        utils._drop_unneeded_columns(proto, {self.join_key, *self.names})
        return proto


class _Replay(RedisOnlineStore):  # type: ignore[misc]
    """The stock store reading what has been read before."""

    def __init__(self, keys: Sequence[bytes], fields: Sequence[bytes], rows: Sequence[Row]) -> None:
        self._rows = dict(zip(keys, rows, strict=True))
        self._positions = {field: position for position, field in enumerate(fields)}

    def _read_hash_fields(
        self, config: RepoConfig, commands: list[tuple[bytes, list[str | bytes]]]
    ) -> list[list[bytes | None]]:
        return [
            [
                self._rows[key][self._positions[name.encode() if isinstance(name, str) else name]]
                for name in names
            ]
            for key, names in commands
        ]


def _request(
    config: RepoConfig,
    features: list[str] | FeatureService,
    entity_rows: list[dict[str, Any]] | Mapping[str, Any],
    registry: BaseRegistry,
    project: str,
    full_feature_names: bool = False,
    include_feature_view_version_metadata: bool = False,
) -> _Request | None:
    """The request, of Feast's arguments, in terms of Redis; None where the stock store has to answer it.

    Raises:
        FeastError: what stock Feast raises for features that do not exist.
    """
    online = config.online_store
    if (
        online.redis_type != RedisType.redis
        or online.client != RedisClient.redis
        or config.entity_key_serialization_version != 3
        or config.registry.enable_online_feature_view_versioning
        or getattr(features, "precompute_online", False)
        or metrics._config.online_features  # stock Feast measures its own reads
    ):
        return None
    context = utils._get_cached_request_context(registry, project, features, full_feature_names)
    _, on_demand, all_keys, entity_types, _, views, names, request_data, without_entity = context
    join_keys = {all_keys[entity] for view, _ in views for entity in view.entities}
    if on_demand or request_data or without_entity or len(join_keys) != 1:
        return None
    (join_key,) = join_keys
    value_type = entity_types.get(join_key)
    ids = _ids(entity_rows, join_key)
    id_type = layout.ID_TYPES.get(value_type.name) if value_type else None
    if id_type is None or not ids:
        return None
    if set(map(type, ids)) != {str if id_type == "string" else int}:
        return None
    if any(view.projection.join_key_map or view.projection.version_tag is not None for view, _ in views):
        return None  # another name of the entity, or a version of the view
    fields: list[bytes] = []
    for view, asked in views:
        fields += [layout.hash_field(view.name, feature) for feature in asked]
        fields.append(layout.timestamp_field(view.name))
    keys = layout.redis_keys(dict.fromkeys(ids), project=config.project, join_key=join_key, id_type=id_type)
    return _Request(
        config,
        join_key,
        value_type,
        ids,
        keys,
        views,
        tuple(fields),
        names,
        full_feature_names,
        include_feature_view_version_metadata,
    )


def _ids(entity_rows: list[dict[str, Any]] | Mapping[str, Any], join_key: str) -> Sequence[str | int] | None:
    """The values of the join key, if the rows hold nothing else."""
    if isinstance(entity_rows, list):
        if any(row.keys() != {join_key} for row in entity_rows):
            return None
        return [row[join_key] for row in entity_rows]
    values = entity_rows.get(join_key)
    return list(values) if isinstance(values, Sequence) and len(entity_rows) == 1 else None


def _sizes(rows: list[Row] | Block) -> tuple[int, ...]:
    """Sizes of the values of the first row; empty if one is missing."""
    if isinstance(rows, Block):
        return rows.sizes
    return tuple(map(len, rows[0])) if None not in rows[0] else ()  # type: ignore[arg-type]
