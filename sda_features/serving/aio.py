"""AsyncEmbeddingClient: what `EmbeddingClient` does, for asyncio; the rules are shared (reading.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Self

import redis
from redis.asyncio import Redis, RedisCluster

from sda_features.errors import OnlineStoreError
from sda_features.serving import wire
from sda_features.serving.client import BaseClient
from sda_features.serving.connection import RedisAddress, redis_errors
from sda_features.serving.reading import Embeddings
from sda_features.serving.wire import DeadlineExceeded, Row


class AsyncEmbeddingClient(BaseClient):
    """Reads item vectors from the Redis online store of a Feast project, for asyncio.

    Arguments, results and errors are those of `EmbeddingClient`; a client of your own is a
    `redis.asyncio.Redis` or `RedisCluster`. Use it in one event loop; tasks may share it.

    Example:
        >>> async with AsyncEmbeddingClient("redis://localhost:6379", project="shop") as client:
        ...     found = await client.get(["B001", "B002"], deadline=0.05)
    """

    _redis: Redis | RedisCluster
    _connect = staticmethod(RedisAddress.connect_async)
    _loop: asyncio.AbstractEventLoop | None = None

    async def get(
        self, item_ids: Sequence[str | int], version: str | None = None, *, deadline: float | None = None
    ) -> Embeddings:
        """As `EmbeddingClient.get`; `deadline` includes the opening of a connection."""
        self._check_loop()
        reading = self._reader.read(item_ids, version)
        with self._observed(len(item_ids)) as observed, redis_errors(self.address):
            reply: Any = None
            try:
                async with asyncio.timeout(deadline):
                    while True:
                        ask = reading.send(reply)
                        reply = await fetch_fields(
                            self._redis, ask.keys, ask.fields, record_key=ask.record_key
                        )
            except StopIteration as end:
                observed.append(end.value)
            except TimeoutError:
                raise DeadlineExceeded("The deadline of the call passed.") from None
            return observed[0]

    async def ping(self) -> None:
        """As `EmbeddingClient.ping`."""
        self._check_loop()
        with redis_errors(self.address):
            await self._redis.ping()  # type: ignore[misc]

    def _check_loop(self) -> None:
        """Connections belong to the event loop that opened them."""
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if self._loop is not loop:
            raise OnlineStoreError(
                "This client was used in another event loop, to which its connections belong. Make one client for "
                "each loop, inside it, or use EmbeddingClient."
            )

    async def close(self) -> None:
        """Close the connections of this client."""
        await self._redis.aclose()
        manager = getattr(getattr(self._redis, "connection_pool", None), "sentinel_manager", None)
        for sentinel in manager.sentinels if manager else ():
            await sentinel.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


async def fetch_fields(
    server: Redis | RedisCluster,
    keys: Sequence[bytes],
    fields: Sequence[bytes],
    *,
    record_key: bytes | None = None,
) -> tuple[list[Row], bytes | None]:
    """Read the same fields of n hashes; as `wire.fetch_fields`, to be cancelled instead of a deadline."""
    if isinstance(server, RedisCluster):
        return await _fetch_from_cluster(server, keys, fields, record_key)
    count = len(keys) + (record_key is not None)
    if not count:
        return [], None

    async def attempt() -> list[Any]:
        await connection.send_packed_command(wire.pack_commands(keys, fields, record_key))
        return await _read_replies(connection, count)

    pool: Any = server.connection_pool
    connection: Any = await pool.get_connection()
    try:
        replies = await connection.retry.call_with_retry(attempt, lambda _: connection.disconnect())
    except BaseException:
        await connection.disconnect(nowait=True)  # replies may be left in it
        raise
    finally:
        await pool.release(connection)
    record = replies.pop() if record_key is not None else None
    wire.check_replies(replies, record)
    return replies, record


async def _read_replies(connection: Any, count: int) -> list[Any]:
    replies: list[Any] = []
    received = wire.drain(connection)
    while len(replies) < count:
        try:
            replies.append(await connection.read_response(disable_decoding=True))
        except redis.exceptions.ResponseError as error:
            replies.append(error)
        replies += received()
        if isinstance(replies[-1], redis.exceptions.ConnectionError):
            raise replies[-1]  # the server is loading, or asks for a log-in
    return replies


async def _fetch_from_cluster(
    server: RedisCluster, keys: Sequence[bytes], fields: Sequence[bytes], record_key: bytes | None
) -> tuple[list[Row], bytes | None]:
    rows: list[Row] = []
    if keys:
        pipeline = server.pipeline()
        for key in keys:
            pipeline.execute_command("HMGET", key, *fields)
        rows = await pipeline.execute()
    record: Any = await server.get(record_key) if record_key is not None else None
    return rows, record
