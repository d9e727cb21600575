"""EmbeddingClient: item vectors from Feast's online store to numpy, in one round trip.

It reads the Redis layout that stock Feast writes (layout.py) and needs numpy and redis only, so a
ranking service starts in a fraction of a second and never turns vectors into Python floats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import redis

from sda_features.errors import FeatureMismatchError, SettingsError
from sda_features.serving import codec, layout
from sda_features.serving.codec import Mask, Matrix
from sda_features.serving.connection import RedisAddress, read_repo_config, redis_errors
from sda_features.serving.layout import IdType


@dataclass(frozen=True)
class Embeddings:
    """Vectors of n requested items, row i for item i.

    Attributes:
        item_ids: the n ids, as requested.
        text: float32 [n, d]; zero where not found.
        text_found: bool [n].
        image: float32 [n, d]; zero where not found.
        image_found: bool [n].
        versions: n adapter versions; None where the item is unknown.
    """

    item_ids: tuple[str | int, ...]
    text: Matrix
    text_found: Mask
    image: Matrix
    image_found: Mask
    versions: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def dim(self) -> int:
        """Dimension d of the vectors; 0 if none was found and the client was not told."""
        return int(self.text.shape[1])


class EmbeddingClient:
    """Reads item vectors from the Redis online store of a Feast project. Safe to share between threads.

    Args:
        server: a Redis URL, Feast's connection string (`host:port,db=0,password=...`), or a
            `redis.Redis` that you configured (Sentinel, a pool of your own); its
            `decode_responses` must be off.
        project: Feast project (`project` in feature_store.yaml).
        feature_set: name of the feature set; its view is `{feature_set}_item_embeddings`.
        view: name of the feature view, instead of `feature_set`.
        join_key: join key of the item entity.
        id_type: type of its ids in Feast.
        dim: the dimension that vectors must have. Give it in a service: a store that was filled
            by another model then fails at once, and unknown items have rows of d zeros.
        version: the adapter version that vectors must have.
        timeout: seconds to wait for a connection and for a reply.

    Example:
        >>> client = EmbeddingClient("redis://localhost:6379", project="shop", feature_set="sda")
        >>> found = client.get(["B001", "B002"])
        >>> scores = found.text @ query  # [2]
    """

    def __init__(
        self,
        server: str | RedisAddress | redis.Redis = "redis://localhost:6379",
        *,
        project: str,
        feature_set: str = "sda",
        view: str | None = None,
        join_key: str = "item_id",
        id_type: IdType = "string",
        dim: int | None = None,
        version: str | None = None,
        timeout: float = 2.0,
    ) -> None:
        if isinstance(server, str | RedisAddress):
            address = RedisAddress.parse(server) if isinstance(server, str) else server
            self._redis = address.connect(timeout=timeout)
            self.address = str(address)
        else:
            options: dict[str, Any] = server.connection_pool.connection_kwargs
            if options.get("decode_responses"):
                raise SettingsError("Vectors are bytes: expected a Redis client with decode_responses=False.")
            self._redis = server
            self.address = f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
        self.view = view or layout.view_name(feature_set)
        self.project = project
        self.join_key = join_key
        self.id_type = id_type
        self.dim = dim
        self.version = version
        self._fields = tuple(layout.hash_field(self.view, feature) for feature in layout.FEATURES)

    @classmethod
    def from_repo(cls, repo_path: Path | str, feature_set: str = "sda", **options: Any) -> Self:
        """A client for the online store that the repo's feature_store.yaml names. Does not import Feast.

        Args:
            repo_path: folder with feature_store.yaml.
            feature_set: name of the feature set.
            options: further arguments of the class (`join_key`, `id_type`, `dim`, ...).

        Raises:
            FeatureStoreError: there is no readable feature_store.yaml.
            OnlineStoreError: the online store is not one Redis server.
        """
        config = read_repo_config(repo_path)
        return cls(config.redis_address(), project=config.project, feature_set=feature_set, **options)

    def get(self, item_ids: Sequence[str | int]) -> Embeddings:
        """Vectors of items, in the order of the request.

        Ids may repeat. An unknown id is not an error: its masks are False and its rows zero.
        All ids go in one round trip; ask for some thousands at a time.

        Raises:
            OnlineStoreError: Redis cannot be reached, or does not hold Feast's hashes.
            FeatureMismatchError: stored values are not float32 vectors of one dimension, or not of
                the dimension and version this client was made for.
        """
        ids = tuple(item_ids)
        texts, images, encoded_versions = self._fetch(ids)
        dim = self.dim or _first_dim(texts, ids) or _first_dim(images, ids)
        text, text_found = codec.decode_vectors(texts, dim, names=ids)
        image, image_found = codec.decode_vectors(images, dim, names=ids)
        # Versions repeat: decode each encoding once.
        decoded = {value: codec.decode_string(value) for value in set(encoded_versions)}
        versions = tuple(decoded[value] for value in encoded_versions)
        self._check_versions(ids, versions)
        return Embeddings(ids, text, text_found, image, image_found, versions)

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

    def _fetch(self, ids: tuple[str | int, ...]) -> tuple[tuple[bytes | None, ...], ...]:
        """The stored values of each feature: three tuples of n."""
        if not ids:
            return (), (), ()
        keys = layout.redis_keys(ids, project=self.project, join_key=self.join_key, id_type=self.id_type)
        with redis_errors(self.address), self._redis.pipeline(transaction=False) as pipeline:
            queue: Callable[..., object] = pipeline.execute_command  # half the cost of `hmget`
            for key in keys:
                queue("HMGET", key, *self._fields)
            rows = pipeline.execute()
        return tuple(zip(*rows, strict=True))

    def _check_versions(self, ids: tuple[str | int, ...], versions: tuple[str | None, ...]) -> None:
        if self.version is None:
            return
        for item_id, version in zip(ids, versions, strict=True):
            if version is not None and version != self.version:
                raise FeatureMismatchError(
                    f"Item {item_id!r} has vectors of adapter version {version!r}, expected {self.version!r}. "
                    f"Materialize {self.view} with that checkpoint, or ask for the version that is stored."
                )


def _first_dim(values: Sequence[bytes | None], ids: Sequence[str | int]) -> int:
    """Dimension of the first vector that is there; 0 without one."""
    return next((codec.vector_dim(value, name) for value, name in zip(values, ids, strict=True) if value), 0)
