"""feature_store.yaml of a Feast repo, read the way Feast does and without it.

Errors never quote the file, which may hold a password. `yaml` is imported only when it is read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sda_features.errors import FeatureStoreError, OnlineStoreError
from sda_features.serving.connection import DEFAULT_PORT, REDIS_TYPES, RedisAddress

REDIS_STORES = (
    "redis",
    "feast.infra.online_stores.redis.RedisOnlineStore",
    "sda_features.feast_plugins.online_store.VectorRedisOnlineStore",
)
_MOVED = {  # dotted paths that feature_store.yaml files may still have
    "sda_features.feature_store.engine": "sda_features.feast_plugins.engine",
    "sda_features.feature_store.online": "sda_features.feast_plugins.online_store",
    "sda_features.feature_store.offline_store": "sda_features.feast_plugins.offline_store",
}
YAML_PATH_VARIABLE = "FEAST_FS_YAML_FILE_PATH"  # Feast's own


@dataclass(frozen=True)
class RepoConfig:
    """The part of a Feast repo's feature_store.yaml that a reader of the online store needs.

    Attributes:
        path: the file that was read.
        project: Feast project, part of every Redis key.
        online_store: the `online_store` mapping; may hold a password.
        offline_type: type of the offline store.
        engine_type: type of the batch engine.
    """

    path: Path
    project: str
    online_store: Mapping[str, Any] = field(repr=False)
    offline_type: str = "dask"
    engine_type: str = "local"

    @property
    def online_type(self) -> str:
        """Type of the online store, `sqlite` by Feast's default."""
        return _type_of(self.online_store, "sqlite")

    @property
    def has_redis(self) -> bool:
        """Whether the online store is Redis: one server, a cluster, or one that Sentinel watches."""
        return self.online_type in REDIS_STORES

    def redis_address(self) -> RedisAddress:
        """Address of the repo's Redis server, cluster or Sentinel.

        Raises:
            OnlineStoreError: the online store is not Redis, or its address cannot be read.
        """
        redis_type = self.online_store.get("redis_type", "redis")
        if not self.has_redis or redis_type not in REDIS_TYPES:
            got = f"{self.online_type} {self.online_store.get('redis_type', '')}".strip()
            raise OnlineStoreError(
                f"Expected an online store of type redis in {self.path}, got {got}. Set online_store to "
                "{type: redis, connection_string: 'localhost:6379'} and run `feast apply`; "
                "with another store, use Feast's get_online_features."
            )
        return RedisAddress.parse(
            str(self.online_store.get("connection_string", f"localhost:{DEFAULT_PORT}")),
            redis_type,
            sentinel_master=str(self.online_store.get("sentinel_master", "mymaster")),
        )


def read_repo_config(repo_path: Path | str) -> RepoConfig:
    """Read feature_store.yaml of a Feast repo the way Feast does, without importing Feast.

    Environment variables in the file are expanded, and FEAST_FS_YAML_FILE_PATH names another file.

    Raises:
        FeatureStoreError: there is no such file, or this version of its layout is not readable.
    """
    import yaml

    path = Path(os.environ.get(YAML_PATH_VARIABLE) or Path(repo_path) / "feature_store.yaml")
    try:
        content = yaml.safe_load(os.path.expandvars(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        inner = Path(repo_path) / "feature_repo"
        hint = "Create one with `feast init`."
        if (inner / "feature_store.yaml").exists():
            hint = f"Did you mean {inner}?"
        raise FeatureStoreError(f"Expected a Feast repo: there is no {path}. {hint}") from None
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        # A YAML error quotes the line, which may be the one with the password.
        raise FeatureStoreError(f"{path} cannot be read as YAML ({type(error).__name__}).") from None
    if not isinstance(content, dict) or not isinstance(content.get("project"), str):
        raise FeatureStoreError(f"Expected a mapping with `project` in {path}.")
    if content.get("entity_key_serialization_version", 3) != 3:
        raise FeatureStoreError(
            f"Expected entity_key_serialization_version: 3 in {path}; other layouts differ."
        )
    registry = content.get("registry")
    if isinstance(registry, dict) and registry.get("enable_online_feature_view_versioning"):
        raise FeatureStoreError(
            f"{path} sets enable_online_feature_view_versioning, which renames the stored features. Remove it."
        )
    online_store = content.get("online_store") or {}
    if isinstance(online_store, str):
        online_store = {"type": online_store}
    offline_type = _type_of(content.get("offline_store"), "dask")
    engine_type = _type_of(content.get("batch_engine"), "local")
    return RepoConfig(path, content["project"], online_store, offline_type, engine_type)


def _type_of(setting: Any, default: str) -> str:
    """The type that a setting of feature_store.yaml names, alone or in a mapping; a class by the path it has now."""
    named = setting.get("type") if isinstance(setting, dict) else setting
    module, dot, name = str(named or default).rpartition(".")
    return f"{_MOVED.get(module, module)}{dot}{name}"
