"""EmbeddingClient: item vectors from Feast's online store to numpy, in one round trip.

It reads the Redis layout that stock Feast writes (layout.py) and needs numpy and redis only, so a
ranking service starts in a fraction of a second and never turns vectors into Python floats.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from redis import asyncio as async_redis
from redis.cluster import RedisCluster

from sda_features.errors import SettingsError
from sda_features.serving.cache import CacheStatistics
from sda_features.serving.connection import RedisAddress, redis_errors
from sda_features.serving.layout import IdType
from sda_features.serving.observer import Observation, Observer
from sda_features.serving.reading import Embeddings, Reader
from sda_features.serving.repo_config import read_repo_config
from sda_features.serving.wire import Server, fetch_fields


class BaseClient:
    """What the clients for threads and for asyncio share; see `EmbeddingClient`."""

    _connect: Callable[..., Any]

    def __init__(
        self,
        server: str | RedisAddress | Any = "redis://localhost:6379",
        *,
        project: str,
        feature_set: str = "sda",
        view: str | None = None,
        join_key: str = "item_id",
        id_type: IdType = "string",
        dim: int | None = None,
        version: str | None = None,
        max_age: timedelta | None = None,
        cache_items: int = 0,
        timeout: float = 2.0,
        observer: Observer | None = None,
    ) -> None:
        self._observer = observer
        self._reader = Reader(
            project=project,
            feature_set=feature_set,
            view=view,
            join_key=join_key,
            id_type=id_type,
            dim=dim,
            version=version,
            max_age=max_age,
            cache_items=cache_items,
        )
        self.project = project
        self.view = self._reader.view  # that is read where no version record says otherwise
        if isinstance(server, str | RedisAddress):
            address = RedisAddress.parse(server) if isinstance(server, str) else server
            self._redis = self._connect(address, timeout=timeout)
            self.address = str(address)
        else:
            if _options_of(server).get("decode_responses"):
                raise SettingsError("Vectors are bytes: expected a Redis client with decode_responses=False.")
            self._redis = server
            self.address = _address_of(server)

    @contextlib.contextmanager
    def _observed(self, items: int) -> Iterator[list[Embeddings]]:
        """Tell the observer of a request; the block appends its result."""
        began, error = time.perf_counter(), None
        result: list[Embeddings] = []
        try:
            yield result
        except Exception as raised:
            error = type(raised).__name__
            raise
        finally:
            if self._observer:
                seconds = time.perf_counter() - began
                self._observer(_observation(seconds, items, result[0] if result else None, error))

    @classmethod
    def from_repo(cls, repo_path: Path | str, feature_set: str = "sda", **options: Any) -> Self:
        """A client for the online store that the repo's feature_store.yaml names. Does not import Feast.

        Args:
            repo_path: folder with feature_store.yaml.
            feature_set: name of the feature set.
            options: further arguments of the class (`join_key`, `id_type`, `dim`, ...).

        Raises:
            FeatureStoreError: there is no readable feature_store.yaml.
            OnlineStoreError: the online store is not Redis.
        """
        config = read_repo_config(repo_path)
        return cls(config.redis_address(), project=config.project, feature_set=feature_set, **options)

    @property
    def cache_statistics(self) -> CacheStatistics:
        """Hits and misses of the cache, zeros without one."""
        cache = self._reader.cache
        return cache.statistics if cache else CacheStatistics()


class EmbeddingClient(BaseClient):
    """Reads item vectors from the Redis online store of a Feast project. Safe to share between threads.

    The live version is served: which one that is, and where it is, says a record in Redis that is
    read together with the vectors. A feature set without a record is served from its first slot.

    Args:
        server: a Redis URL, Feast's connection string (`host:port,db=0,password=...`), a
            `RedisAddress` (for a cluster or Sentinel), or a `redis.Redis` or `RedisCluster` that you
            configured; its `decode_responses` must be off.
        project: Feast project (`project` in feature_store.yaml).
        feature_set: name of the feature set.
        view: name of one feature view to read, whatever version is live.
        join_key: join key of the item entity.
        id_type: type of its ids in Feast.
        dim: the dimension that vectors must have. Give it in a service: a store that was filled
            by another model then fails at once, and unknown items have rows of d zeros.
        version: the adapter version to read instead of the live one.
        max_age: items that were last seen unchanged longer ago count as not found, as a ranking that
            goes on without one item beats a request that fails. A materialisation that ends has seen
            all items; without a version record the time of the vectors counts.
        cache_items: keep the rows of so many items in this process. Only the version record is then
            asked for when all are there. Without a record nothing is kept.
        timeout: seconds to wait for a connection and for a reply; what is tried again waits again.
        observer: told of each request: duration, found items, version and its age (observer.py).

    Example:
        >>> client = EmbeddingClient("redis://localhost:6379", project="shop", feature_set="sda")
        >>> found = client.get(["B001", "B002"])
        >>> scores = found.text @ query  # [2]
    """

    _redis: Server
    _connect = staticmethod(RedisAddress.connect)

    def get(
        self, item_ids: Sequence[str | int], version: str | None = None, *, deadline: float | None = None
    ) -> Embeddings:
        """Vectors of items, in the order of the request.

        Ids may repeat. An unknown id is not an error: its masks are False and its rows zero.
        All ids go in one round trip; ask for some thousands at a time.

        Args:
            item_ids: n ids.
            version: the adapter version to read, for this call.
            deadline: seconds for the whole call, retries included. A connection that has to be
                opened may take `timeout` on top.

        Raises:
            OnlineStoreError: Redis cannot be reached, does not answer in time, or does not hold
                Feast's hashes.
            FeatureMismatchError: the version is not stored, or stored values are not vectors of one
                version and dimension, the ones that were asked for.
        """
        ends = None if deadline is None else time.monotonic() + deadline
        reading = self._reader.read(item_ids, version)
        with self._observed(len(item_ids)) as observed, redis_errors(self.address):
            reply: Any = None
            try:
                while True:
                    ask = reading.send(reply)
                    reply = fetch_fields(
                        self._redis, ask.keys, ask.fields, ask.sizes, record_key=ask.record_key, deadline=ends
                    )
            except StopIteration as end:
                observed.append(end.value)
            return observed[0]

    def ping(self) -> None:
        """Check that the online store answers.

        Raises:
            OnlineStoreError: it does not.
        """
        with redis_errors(self.address):
            self._redis.ping()

    def close(self) -> None:
        """Close the connections of this client."""
        self._redis.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _observation(seconds: float, items: int, read: Embeddings | None, error: str | None) -> Observation:
    if read is None:
        return Observation(seconds, items, 0, None, None, error)
    found = int((read.text_found | read.image_found).sum())
    version = next(filter(None, read.versions), None)
    age = (datetime.now(UTC) - read.seen).total_seconds() if read.seen else None
    return Observation(seconds, items, found, version, age, error)


def _options_of(server: Any) -> dict[str, Any]:
    """Keyword arguments of the connections of a client that the caller made."""
    if isinstance(server, async_redis.RedisCluster):
        return server.connection_kwargs
    options: dict[str, Any] = server.get_connection_kwargs()
    return options


def _address_of(server: Any) -> str:
    """Where it connects to, for messages."""
    if isinstance(server, RedisCluster | async_redis.RedisCluster):
        return ",".join(node.name for node in server.get_nodes()) or "a cluster"
    options = _options_of(server)
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
