"""Where the online store is: Redis addresses and Feast's connection strings, and the clients for them.

Errors name host and port and never a password.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, TypeAlias, get_args
from urllib.parse import urlsplit

import redis
from redis import asyncio as async_redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

from sda_features.errors import OnlineStoreError
from sda_features.serving.wire import READ_BYTES, DeadlineExceeded

DEFAULT_PORT = 6379
CLUSTER_TRIES = 10  # for each retry asked for: redis-py waits .05 s or .25 s between tries in a cluster
RedisType: TypeAlias = Literal["redis", "redis_cluster", "redis_sentinel"]  # Feast's redis_type
REDIS_TYPES: tuple[RedisType, ...] = get_args(RedisType)


@dataclass(frozen=True)
class RedisAddress:
    """A Redis server, a cluster, or a master that Sentinel watches.

    Attributes:
        host: name or IP address; the path of a unix socket. Of a cluster: of one of its nodes; with
            Sentinel: of a Sentinel.
        port: TCP port; 0 for a unix socket.
        options: keyword arguments of `redis.Redis`; may hold a password, so they are never printed.
            With Sentinel they are those of the master.
        redis_type: what is at the address, in Feast's words.
        others: host and port of further nodes or Sentinels, asked when the first does not answer.
        sentinel_master: name under which Sentinel knows the master.
    """

    host: str
    port: int
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    redis_type: RedisType = "redis"
    others: tuple[tuple[str, int], ...] = ()
    sentinel_master: str = "mymaster"

    @classmethod
    def parse(
        cls, address: str, redis_type: RedisType = "redis", *, sentinel_master: str = "mymaster"
    ) -> Self:
        """Read a URL (`redis://`, `rediss://`, `unix://`) or Feast's `host:port,db=0,password=...,ssl=true`.

        A cluster or Sentinel may be given by several servers: `host1:port,host2:port,password=...`.

        Raises:
            OnlineStoreError: the text is neither, or names several servers for `redis_type` redis.
        """
        parsed = cls._from_url(address) if "://" in address else cls._from_feast(address)
        if redis_type == "redis" and parsed.others:
            raise OnlineStoreError(
                f"Expected one Redis server as host:port,db=0,ssl=true,..., got {1 + len(parsed.others)} servers. "
                "For a cluster set redis_type to redis_cluster, for Sentinel to redis_sentinel."
            )
        return replace(parsed, redis_type=redis_type, sentinel_master=sentinel_master)

    @classmethod
    def _from_url(cls, url: str) -> Self:
        try:
            parse: Callable[[str], Mapping[str, Any]] = redis.connection.parse_url
            options = {"host": "localhost", "port": DEFAULT_PORT, **parse(url)}
            host, port = options.pop("host"), options.pop("port")
            if path := options.pop("path", None):
                host = options["unix_socket_path"] = path
                port = 0
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
        servers = [_host_and_port(part) for part in parts if "=" not in part]
        if not servers:
            raise OnlineStoreError("Expected a Redis server as host:port,db=0,ssl=true,..., got 0 servers.")
        options = (part.split("=", 1) for part in parts if "=" in part)
        (host, port), *others = servers
        return cls(host, port, {key: _option(key, text) for key, text in options}, others=tuple(others))

    def __str__(self) -> str:
        text = ",".join(f"{host}:{port}" if port else host for host, port in self._servers())
        return f"{text} (master {self.sentinel_master})" if self.redis_type == "redis_sentinel" else text

    def connect(self, *, timeout: float, retries: int = 1, name: str | None = None) -> redis.Redis:
        """A client; it connects on first use. For a cluster it is a `RedisCluster`, which connects at once.

        Args:
            timeout: seconds to wait for a connection and for a reply.
            retries: after a lost connection; from the second on with a wait that doubles up to two seconds,
                in a cluster with as many short waits as take as long.
            name: of its connections, as CLIENT LIST shows it.

        Raises:
            OnlineStoreError: an option is unknown, or no node of the cluster answers.
        """
        backoff = NoBackoff() if retries == 1 else ExponentialBackoff(cap=2, base=0.1)  # type: ignore[no-untyped-call]
        if self.redis_type == "redis_cluster" and retries > 1:
            retries *= CLUSTER_TRIES
        client: redis.Redis = self._client(redis, timeout, Retry(backoff, retries), client_name=name)
        if self.redis_type != "redis_cluster":  # redis-py has this setting for connections, not for clients
            client.connection_pool.connection_kwargs.setdefault("socket_read_size", READ_BYTES)
        return client

    def connect_async(self, *, timeout: float) -> async_redis.Redis:
        """As `connect`, for asyncio; every client connects on first use."""
        retry = async_redis.retry.Retry(NoBackoff(), 1)
        client: async_redis.Redis = self._client(async_redis, timeout, retry)
        return client

    def _client(self, library: Any, timeout: float, retry: object, **further: object) -> Any:
        """A client of `redis`, or of `redis.asyncio`."""
        waits = {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": retry}
        settings = {**waits, **self.options, "decode_responses": False, **further}
        servers = self._servers()
        try:
            if self.redis_type == "redis_cluster":
                if not settings.get("db"):
                    settings.pop("db", None)  # a cluster has one database
                nodes = [library.cluster.ClusterNode(*server) for server in servers]
                with redis_errors(self):
                    return library.RedisCluster(startup_nodes=nodes, **settings)
            if self.redis_type == "redis_sentinel":
                # With redis-py's own settings of connections to Sentinels a dead one is retried for seconds.
                own = {name: settings[name] for name in waits}
                watch = library.Sentinel(servers, sentinel_kwargs=own, **settings)
                return watch.master_for(self.sentinel_master)
            return library.Redis(host=self.host, port=self.port or DEFAULT_PORT, **settings)
        except TypeError as error:
            raise OnlineStoreError(
                f"Redis at {self}: an option of the connection string is unknown: {error}"
            ) from None

    def _servers(self) -> list[tuple[str, int]]:
        return [(self.host, self.port), *self.others]


@contextlib.contextmanager
def redis_errors(address: object) -> Iterator[None]:
    """Turn errors of the Redis client in the block into `OnlineStoreError`s that name `address`."""
    try:
        yield
    except DeadlineExceeded:
        message = "the deadline of the call passed before it had answered. Check its load, or allow more time"
    except redis.exceptions.AuthenticationError:
        message = "it refused the user or the password. Correct them in the connection string"
    except redis.exceptions.TimeoutError:
        message = "it did not answer in time. Check the network and its load, or allow a longer timeout"
    except redis.exceptions.ConnectionError as error:
        message = (
            "it cannot be reached. Start it, or correct the address (online_store in feature_store.yaml)"
        )
        if "SSL" in str(error):
            message = (
                "TLS failed: name its certificate authority with ssl_ca_certs, or check that it speaks TLS"
            )
    except redis.exceptions.NoPermissionError as error:
        message = (
            f"the user lacks rights ({error}). Allow it the commands HMGET and GET on all keys of the project; a "
            "writer also HGET, HSET, HDEL, EXPIRE, EVAL, SCAN, EXISTS, LRANGE, CLIENT and INFO"
        )
    except redis.exceptions.OutOfMemoryError:
        message = (
            "its memory is full (maxmemory). What was written stays and is not written again: prune versions that are "
            "not needed, or raise maxmemory, and run again"
        )
    except redis.exceptions.ReadOnlyError:
        message = (
            "it is a replica, which cannot be written. Give the address of the master, or set redis_type to "
            "redis_sentinel so that it is found"
        )
    except redis.exceptions.ResponseError as error:
        message = f"it holds something else than Feast's hashes ({error}). Check the database number"
        if isinstance(error, redis.exceptions.AskError) or str(error).startswith("MOVED"):
            message = "it is a node of a cluster. Set redis_type to redis_cluster (online_store in feature_store.yaml)"
    except redis.exceptions.RedisClusterException:
        message = "no node of the cluster can be reached. Correct the addresses (online_store in feature_store.yaml)"
    except redis.exceptions.RedisError as error:
        message = f"reading from it failed ({type(error).__name__})"
    else:
        return
    raise OnlineStoreError(f"Expected a Redis server at {address}, but {message}.") from None


def _host_and_port(server: str) -> tuple[str, int]:
    unset = re.search(r"\$\{?(\w+)", server)
    if unset:
        raise OnlineStoreError(
            f"The Redis address is the environment variable {unset[1]}, which is not set. "
            f"Set it, for example: export {unset[1]}=localhost:{DEFAULT_PORT}"
        )
    host, _, port = server.rpartition(":") if ":" in server else (server, "", str(DEFAULT_PORT))
    if not port.isdecimal() or int(port) > 65535:
        raise OnlineStoreError("The Redis port is not a number up to 65535. Expected host:port,db=0,...")
    return host or "localhost", int(port)


def _option(key: str, text: str) -> Any:
    """An option as Feast reads it, as JSON where it is JSON; secrets stay text, all digits or not."""
    if key in ("username", "password"):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
