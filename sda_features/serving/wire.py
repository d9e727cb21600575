"""Fields of many Redis hashes in one round trip, over redis-py's own connections.

redis-py's pipeline builds and reads every command by itself; here the commands that differ in their
key only are joined from prepared pieces, and replies are taken from hiredis as they are, one call
for all that have arrived, or, where their lengths are known, as one block (blocks.py). Pools,
time-outs, retries, TLS and log-ins are redis-py's. In a cluster each node gets its own commands, all
nodes before the first is waited for; keys that a node does not have, or that no longer answers, are
read through redis-py's own pipeline, which follows them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import redis
from redis.cluster import RedisCluster
from redis.crc import key_slot
from redis.exceptions import RedisError

from sda_features.serving.blocks import Block, receive_block

try:
    from redis._parsers.hiredis import NOT_ENOUGH_DATA
except ImportError:
    NOT_ENOUGH_DATA = None

Server: TypeAlias = "redis.Redis | RedisCluster"
Row: TypeAlias = "list[bytes | None]"  # the values of one hash, in the order of the fields
Rows: TypeAlias = "list[Row] | Block"

READ_BYTES = 1 << 14
"""`socket_read_size` for connections: hiredis moves what is left in its buffer after each reply, so
reading much at once makes it slow."""
GONE = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)
ELSEWHERE = (redis.exceptions.AskError, redis.exceptions.TryAgainError, redis.exceptions.ClusterDownError)
CHUNK = 128  # keys that are packed and sent before the next are packed: the server starts meanwhile


class DeadlineExceeded(RedisError):
    """The time that a caller allowed for a call is over. Unlike a socket's time-out it is not retried."""


def fetch_fields(
    server: Server,
    keys: Sequence[bytes],
    fields: Sequence[bytes],
    sizes: Sequence[int] = (),
    *,
    record_key: bytes | None = None,
    deadline: float | None = None,
) -> tuple[Rows, bytes | None]:
    """Read the same fields of n hashes.

    Args:
        server: a client with `decode_responses=False`; its pool, time-outs and retries apply.
        keys: n keys.
        fields: names of the fields.
        sizes: bytes that the value of each field is expected to have; empty: not known.
        record_key: key of a string that is read after all hashes, in the same round trip (in a cluster
            in one of its own): what it says held when the hashes were read.
        deadline: instant of `time.monotonic()` at which to give up. Opening a connection is bounded
            by the client's own time-outs alone.

    Returns:
        n rows, None where a hash has no such field; a block if every value is there with its size.
        And the string.

    Raises:
        DeadlineExceeded: the deadline passed.
        redis.exceptions.RedisError: what redis-py raises; a key that is no hash is a ResponseError.
    """
    if isinstance(server, RedisCluster):
        return _fetch_from_cluster(server, keys, fields, sizes, record_key, deadline)
    count, more = len(keys), int(record_key is not None)
    if not count + more:
        return [], None

    def attempt() -> tuple[list[Any] | Block, list[Any]]:
        check_deadline(deadline)
        connection.send_packed_command(pack_commands(keys, fields, record_key))
        return _receive(connection, count, sizes, deadline, more)

    with borrowed(server.connection_pool) as connection:
        rows, rest = connection.retry.call_with_retry(attempt, lambda _: connection.disconnect())
    record = rest[0] if rest else None
    check_replies([] if isinstance(rows, Block) else rows, record)
    return rows, record


@contextlib.contextmanager
def borrowed(pool: Any) -> Iterator[Any]:
    """A connection of a pool; after an exception it is closed, as replies may be left in it."""
    connection = pool.get_connection()
    try:
        yield connection
    except BaseException:
        connection.disconnect()
        raise
    finally:
        pool.release(connection)


def pack_commands(
    keys: Sequence[bytes], fields: Sequence[bytes], record_key: bytes | None
) -> Iterator[bytes]:
    """The requests of `fetch_fields` as the Redis protocol writes them, in a few large pieces."""
    tail = b"\r\n" + b"".join([b"$%d\r\n%b\r\n" % (len(field), field) for field in fields])
    start = b"*%d\r\n$5\r\nHMGET\r\n$" % (2 + len(fields))
    heads = {size: b"%b%d\r\n" % (start, size) for size in set(map(len, keys))}
    for first in range(0, len(keys), CHUNK):
        commands = [heads[len(key)] + key for key in keys[first : first + CHUNK]]
        yield tail.join([*commands, b""])
    if record_key is not None:
        yield b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(record_key), record_key)


def check_replies(rows: list[Any], record: object) -> None:
    """Raise the first error among the replies; all of them have been read, so the connection is clean."""
    if set(map(type, rows)) - {list} or isinstance(record, Exception):
        raise next(reply for reply in [*rows, record] if isinstance(reply, Exception))


def check_deadline(deadline: float | None) -> float:
    """Seconds that are left, infinite without a deadline.

    Raises:
        DeadlineExceeded: none are.
    """
    left = float("inf") if deadline is None else deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded("The deadline of the call passed.")
    return left


def drain(connection: Any) -> Callable[[], list[Any]]:
    """A callable that returns the whole replies which a connection has received already.

    redis-py's `read_response` costs several microseconds a reply; its hiredis reader, asked
    directly, a fraction of one. Where that is not possible the callable finds nothing, and every
    reply comes from `read_response`.
    """
    reader = _hiredis_of(connection)
    return (lambda: list(iter(reader.gets, NOT_ENOUGH_DATA))) if reader else list


def _hiredis_of(connection: Any) -> Any:
    """The hiredis reader of a connected connection; None where there is none to be used.

    Neither it nor the socket is part of redis-py's interface, so both are looked for. With RESP3
    pushed messages may come between replies, which redis-py has to see.
    """
    reader = getattr(getattr(connection, "_parser", None), "_reader", None)
    fit = NOT_ENOUGH_DATA is not None and type(reader).__module__.startswith("hiredis")
    return reader if fit and str(getattr(connection, "protocol", "")) == "2" else None


def _read_replies(connection: Any, count: int, deadline: float | None, replies: list[Any]) -> list[Any]:
    """`count` replies, of which some were read before; errors of single commands are among them."""
    received = drain(connection)
    while len(replies) < count:
        if deadline is not None:
            _wait(connection, deadline)
        try:
            replies.append(connection.read_response(disable_decoding=True))
        except redis.exceptions.ResponseError as error:
            replies.append(error)
        replies += received()
    if replies and isinstance(replies[-1], redis.exceptions.ConnectionError):
        raise replies[-1]  # the server is loading, or asks for a log-in
    return replies


def _wait(connection: Any, deadline: float) -> None:
    """Until something has come, the deadline passes, or the time-out of the connection does."""
    left = check_deadline(deadline)
    if not connection.can_read(min(left, connection.socket_timeout or left)):
        check_deadline(deadline)
        raise redis.exceptions.TimeoutError("Timeout reading from socket")


def _receive(
    connection: Any, count: int, sizes: Sequence[int], deadline: float | None, more: int = 0
) -> tuple[list[Any] | Block, list[Any]]:
    """`count` replies, as a block if they have the sizes, and `more` others."""
    replies: list[Any] = []
    if count and sizes and (reader := _hiredis_of(connection)):
        block, received = receive_block(connection, count, sizes, lambda: check_deadline(deadline))
        if block:
            return block, _read_replies(connection, more, deadline, [])
        for start in range(0, len(received), READ_BYTES):
            reader.feed(received, start, min(READ_BYTES, len(received) - start))
            replies += drain(connection)()
    replies = _read_replies(connection, count + more, deadline, replies)
    return replies[:count], replies[count:]


def by_node(server: RedisCluster, keys: Sequence[bytes]) -> list[tuple[Any, list[int]]]:
    """The nodes that have keys, each with the rows of its keys in `keys`."""
    slots = server.nodes_manager.slots_cache
    nodes: dict[str, tuple[Any, list[int]]] = {}
    for row, key in enumerate(keys):
        held_by = slots.get(key_slot(key))
        node = held_by[0] if held_by else server.get_default_node()  # type: ignore[no-untyped-call]
        nodes.setdefault(node.name, (node, []))[1].append(row)
    return list(nodes.values())


def _fetch_from_cluster(
    server: RedisCluster,
    keys: Sequence[bytes],
    fields: Sequence[bytes],
    sizes: Sequence[int],
    record_key: bytes | None,
    deadline: float | None,
) -> tuple[Rows, bytes | None]:
    check_deadline(deadline)
    parts: list[tuple[list[int], list[Any] | Block]] = []
    asked: list[tuple[list[int], Any]] = []  # rows, connection
    left: list[int] = []  # rows without an answer
    with contextlib.ExitStack() as stack:
        for node, rows in by_node(server, keys):
            try:
                connection = stack.enter_context(borrowed(server.get_redis_connection(node).connection_pool))
                connection.send_packed_command(pack_commands([keys[row] for row in rows], fields, None))
                asked.append((rows, connection))
            except GONE:
                left += rows
        for rows, connection in asked:
            try:
                replies, _ = _receive(connection, len(rows), sizes, deadline)
            except GONE:
                left += rows
                connection.disconnect()
                continue
            if not isinstance(replies, Block):
                for at, reply in enumerate(replies):
                    if isinstance(reply, ELSEWHERE):
                        left.append(rows[at])
                        replies[at] = []
                check_replies(replies, None)
            parts.append((rows, replies))
    if left:
        check_deadline(deadline)
        pipeline = server.pipeline()  # type: ignore[no-untyped-call]
        for row in left:
            pipeline.execute_command("HMGET", keys[row], *fields)
        parts.append((left, pipeline.execute()))
    check_deadline(deadline)
    record: Any = server.get(record_key) if record_key is not None else None
    return _gather(parts, len(keys)), record


def _gather(parts: Sequence[tuple[list[int], list[Any] | Block]], count: int) -> Rows:
    """Replies of several nodes in the order of the request; one block if all are blocks."""
    blocks = [block for _, block in parts if isinstance(block, Block)]
    if blocks and len(blocks) == len(parts):
        data = np.empty((count, blocks[0].data.shape[1]), np.uint8)
        for (rows, _), block in zip(parts, blocks, strict=True):
            data[rows] = block.data
        return Block(data, blocks[0].starts, blocks[0].sizes)
    gathered: list[Row] = [[]] * count
    for rows, part in parts:
        for row, reply in zip(rows, part, strict=True):
            gathered[row] = reply
    return gathered
