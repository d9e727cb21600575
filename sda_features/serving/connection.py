"""Where the online store is: Redis addresses, Feast's connection strings, feature_store.yaml.

Errors name host and port and never a password. `yaml` is imported only to read a repo's file.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from sda_features.errors import FeatureStoreError, OnlineStoreError

DEFAULT_PORT = 6379
REDIS_TYPES = ("redis", "feast.infra.online_stores.redis.RedisOnlineStore")
YAML_PATH_VARIABLE = "FEAST_FS_YAML_FILE_PATH"  # Feast's own


@dataclass(frozen=True)
class RedisAddress:
    """One Redis server.

    Attributes:
        host: name or IP address; the path of a unix socket.
        port: TCP port; 0 for a unix socket.
        options: keyword arguments of `redis.Redis`; may hold a password, so they are never printed.
    """

    host: str
    port: int
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, address: str) -> Self:
        """Read a URL (`redis://`, `rediss://`, `unix://`) or Feast's `host:port,db=0,password=...,ssl=true`.

        Raises:
            OnlineStoreError: the text is neither, or names several servers.
        """
        return cls._from_url(address) if "://" in address else cls._from_feast(address)

    @classmethod
    def _from_url(cls, url: str) -> Self:
        try:
            parse: Callable[[str], Mapping[str, Any]] = redis.connection.parse_url
            options = dict(parse(url))
            host = options.pop("host", None) or options.get("path") or "localhost"
            port = 0 if "path" in options else options.pop("port", DEFAULT_PORT)
            if "path" in options:
                options["unix_socket_path"] = options.pop("path")
            options["ssl"] = urlsplit(url).scheme == "rediss"
            options.pop("connection_class", None)
        except ValueError:
            # The parser's own message may quote the password.
            raise OnlineStoreError(
                "The Redis URL cannot be read. Expected redis://[user:password@]host:port/db, rediss:// or unix://."
            ) from None
        return cls(str(host), int(port), options)

    @classmethod
    def _from_feast(cls, text: str) -> Self:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        servers = [part for part in parts if "=" not in part]
        if len(servers) != 1:
            raise OnlineStoreError(
                f"Expected one Redis server as host:port,db=0,ssl=true,..., got {len(servers)} servers. "
                "A cluster cannot be read by this client: give it the address of one server."
            )
        unset = re.search(r"\$\{?(\w+)", servers[0])
        if unset:
            raise OnlineStoreError(
                f"The Redis address is the environment variable {unset[1]}, which is not set. "
                f"Set it, for example: export {unset[1]}=localhost:{DEFAULT_PORT}"
            )
        host, _, port = (
            servers[0].rpartition(":") if ":" in servers[0] else (servers[0], "", str(DEFAULT_PORT))
        )
        if not port.isdecimal() or int(port) > 65535:
            raise OnlineStoreError("The Redis port is not a number up to 65535. Expected host:port,db=0,...")
        options = dict(part.split("=", 1) for part in parts if "=" in part)
        return cls(
            host or "localhost", int(port), {key: _option(key, value) for key, value in options.items()}
        )

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" if self.port else self.host

    def connect(self, *, timeout: float) -> redis.Redis:
        """A client of this server; it connects on first use.

        Args:
            timeout: seconds to wait for a connection and for a reply; one retry after a lost connection.
        """
        settings: dict[str, Any] = {
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "retry": Retry(NoBackoff(), 1),
            "host": self.host,
            "port": self.port or DEFAULT_PORT,
            **self.options,
            "decode_responses": False,
        }
        try:
            return redis.Redis(**settings)
        except TypeError as error:
            raise OnlineStoreError(
                f"Redis at {self}: an option of the connection string is unknown: {error}"
            ) from None


@contextlib.contextmanager
def redis_errors(address: object) -> Iterator[None]:
    """Turn errors of the Redis client in the block into `OnlineStoreError`s that name `address`."""
    try:
        yield
    except redis.exceptions.AuthenticationError:
        message = "it refused the user or the password. Correct them in the connection string"
    except redis.exceptions.TimeoutError:
        message = "it did not answer in time. Check the network and its load, or allow a longer timeout"
    except redis.exceptions.ConnectionError:
        message = (
            "it cannot be reached. Start it, or correct the address (online_store in feature_store.yaml)"
        )
    except redis.exceptions.ResponseError as error:
        if str(error).startswith(("NOAUTH", "WRONGPASS", "NOPERM")):
            message = (
                "it asks for a user or a password with more rights. Correct them in the connection string"
            )
        else:
            message = f"it holds something else than Feast's hashes ({error}). Check the database number"
    except redis.exceptions.RedisError as error:
        message = f"reading from it failed ({type(error).__name__})"
    else:
        return
    raise OnlineStoreError(f"Expected a Redis server at {address}, but {message}.") from None


@dataclass(frozen=True)
class RepoConfig:
    """The part of a Feast repo's feature_store.yaml that a reader of the online store needs.

    Attributes:
        path: the file that was read.
        project: Feast project, part of every Redis key.
        online_store: the `online_store` mapping; may hold a password.
    """

    path: Path
    project: str
    online_store: Mapping[str, Any] = field(repr=False)

    @property
    def online_type(self) -> str:
        """Type of the online store, `sqlite` by Feast's default."""
        return str(self.online_store.get("type", "sqlite"))

    @property
    def has_plain_redis(self) -> bool:
        """Whether the online store is one Redis server: no cluster, no Sentinel."""
        return self.online_type in REDIS_TYPES and self.online_store.get("redis_type", "redis") == "redis"

    def redis_address(self) -> RedisAddress:
        """Address of the repo's Redis server.

        Raises:
            OnlineStoreError: the online store is not one Redis server, or its address cannot be read.
        """
        if not self.has_plain_redis:
            got = f"{self.online_type} {self.online_store.get('redis_type', '')}".strip()
            raise OnlineStoreError(
                f"Expected an online store of type redis with redis_type redis in {self.path}, got {got}. "
                "Set online_store to {type: redis, connection_string: 'localhost:6379'} and run `feast apply`; "
                "for a cluster or Sentinel, use Feast's get_online_features."
            )
        return RedisAddress.parse(
            str(self.online_store.get("connection_string", f"localhost:{DEFAULT_PORT}"))
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
        hint = (
            f"Did you mean {inner}?"
            if (inner / "feature_store.yaml").exists()
            else "Create one with `feast init`."
        )
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
    online_store = content.get("online_store")
    if isinstance(online_store, str):
        online_store = {"type": online_store}
    return RepoConfig(path, content["project"], online_store or {})


def _option(key: str, text: str) -> Any:
    """An option as Feast reads it, as JSON where it is JSON; secrets stay text, all digits or not."""
    if key in ("username", "password"):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
