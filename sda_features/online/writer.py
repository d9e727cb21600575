"""Rows of a feature view into Redis, as stock Feast writes them and near the speed of raw bytes.

Feast turns every vector into Python floats and a protobuf message. Here commands are put together
from Arrow buffers (commands.py) and go through a connection of the caller's own client, so
TLS, users, time-outs and retries are redis-py's.
"""

from __future__ import annotations

import contextlib
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import redis
from redis.backoff import ExponentialBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry

from sda_features.offline.latest import epoch_nanoseconds
from sda_features.online.commands import UnsupportedRows, commands, encode_times, hash_commands
from sda_features.serving import codec, layout
from sda_features.serving.layout import IdType
from sda_features.serving.wire import by_node, drain

Mask: TypeAlias = npt.NDArray[np.bool_]

Guard: TypeAlias = Callable[..., None]
"""Called before each send, with `connected=True` when the connection is new; raises if this process may not write."""

progress: ContextVar[Callable[[int], object]] = ContextVar("progress", default=lambda rows: None)
"""Called with the rows of each chunk that `write_batches` has sent; Feast, between, hands no such thing on."""

CHUNK_ROWS = 256  # in one send
AHEAD = 3  # chunks on their way while the next is prepared
CLUSTER_RETRIES = 12  # of one command, some twenty seconds in all: a replica takes over in that time

_GONE = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)
_ELSEWHERE = (redis.exceptions.AskError, redis.exceptions.TryAgainError, redis.exceptions.ClusterDownError)


@dataclass(frozen=True)
class OnlineView:
    """A feature view with one join key, as Redis holds it.

    Attributes:
        project: Feast project.
        view: name of the feature view.
        features: its features.
        join_key: join key of its entity.
        id_type: type of the entity's values.
    """

    project: str
    view: str
    features: tuple[str, ...]
    join_key: str = "item_id"
    id_type: IdType = "string"

    @cached_property
    def fields(self) -> list[bytes]:
        """Hash fields of the features, in their order."""
        return [layout.hash_field(self.view, feature) for feature in self.features]

    @cached_property
    def time_field(self) -> bytes:
        """Hash field of the event time."""
        return layout.timestamp_field(self.view)

    def keys(self, ids: Iterable[str | int]) -> list[bytes]:
        """Redis keys of entities."""
        return layout.redis_keys(ids, project=self.project, join_key=self.join_key, id_type=self.id_type)

    @property
    def key_pattern(self) -> bytes:
        """What SCAN matches: a few keys of others besides."""
        return b"*" + self.project.encode()

    def owns(self, key: bytes) -> bool:
        """Whether a key is one of this project's entities, by its lengths: `coffeeshop` ends in `shop`, too."""
        prefix, size = layout.key_prefix(self.join_key, self.id_type), struct.Struct("<I")
        if not key.startswith(prefix) or len(key) < len(prefix) + size.size:
            return False
        (length,) = size.unpack_from(key, len(prefix))
        return key[len(prefix) + size.size + length :] == self.project.encode()


def write_batches(
    client: redis.Redis,
    view: OnlineView,
    batches: Iterable[pa.RecordBatch],
    *,
    timestamp: str = "event_timestamp",
    expire: int | None = None,
    overwrite: bool = False,
    guard: Guard | None = None,
) -> int:
    """Write rows whose keys differ, with Feast's rule: a stored row that is as new or newer stays.

    Args:
        client: a client of one server; it keeps its pool, time-outs and retries.
        view: where the rows go.
        batches: columns `view.join_key`, `view.features` and `timestamp`. A feature is list<float32>,
            string or binary; a null becomes an empty value.
        timestamp: column of event times; without a time zone they are UTC.
        expire: Feast's `key_ttl_seconds`: a written hash, with all its views, is dropped after so long.
        overwrite: Feast's `skip_dedup`: do not look at stored rows.
        guard: see `Guard`.

    Returns:
        Rows written, without those that stayed.

    Raises:
        UnsupportedRows: a column has another type, or an id, a time or a number of a vector is null.
            Rows before it may be written.
        redis.RedisError: as from any command of `client`.
    """
    write = _Write(view, timestamp, expire or None)
    written = 0
    with _pipelines(client, guard) as pipelines:
        for batch in _chunks(batches, CHUNK_ROWS * pipelines.nodes):
            keys = write.keys(batch)
            for pipeline, rows in pipelines.of(keys):
                part, part_keys = (
                    (batch.take(pa.array(rows)), [keys[row] for row in rows]) if rows else (batch, keys)
                )
                if overwrite:
                    written += write.send(pipeline, part, part_keys)
                    pipeline.drain(keep=AHEAD)
                    continue
                # Stored times are asked for some chunks ahead, so that no write waits for an answer.
                pipeline.send(commands(b"HGET", part_keys, view.time_field), len(part_keys), asked=True)
                pipeline.waiting.append((part, part_keys))
                if len(pipeline.waiting) > AHEAD:
                    written += write.send_newer(pipeline, *pipeline.waiting.popleft())
            progress.get()(len(batch))
        for pipeline in pipelines:
            for chunk in pipeline.waiting:
                written += write.send_newer(pipeline, *chunk)
            pipeline.drain()
    return written


def write_table(
    client: redis.Redis,
    view: OnlineView,
    table: pa.Table,
    *,
    timestamp: str = "event_timestamp",
    expire: int | None = None,
    overwrite: bool = False,
    guard: Guard | None = None,
) -> int:
    """Write rows whose keys may repeat: the newest of a key counts, the first of several as new.

    With `overwrite` the last row of a key counts, as with Feast's `skip_dedup`. Arguments, result
    and errors are those of `write_batches`.
    """
    kept = table.take(pa.array(_last_written(table, view.join_key, timestamp, overwrite)))
    batches = kept.to_batches(max_chunksize=CHUNK_ROWS)
    return write_batches(
        client, view, batches, timestamp=timestamp, expire=expire, overwrite=overwrite, guard=guard
    )


def delete_view_rows(
    client: redis.Redis, view: OnlineView, ids: Sequence[str | int], guard: Guard | None = None
) -> int:
    """Delete the fields of one view for some entities, by their exact keys.

    Other views of the entities stay, and so does everything of other projects. Redis drops a hash
    that has no field left.

    Returns:
        Entities that had a row of the view.
    """
    return delete_view_keys(client, view, view.keys(ids), guard)


def delete_view_keys(
    client: redis.Redis, view: OnlineView, keys: Sequence[bytes], guard: Guard | None = None
) -> int:
    """As `delete_view_rows`, for keys."""
    deleted = 0
    fields = [view.time_field, *view.fields]
    with _pipelines(client, guard) as pipelines:
        for start in range(0, len(keys), CHUNK_ROWS):
            chunk = keys[start : start + CHUNK_ROWS]
            for pipeline, rows in pipelines.of(chunk):
                part = [chunk[row] for row in rows] if rows else chunk
                pipeline.send(commands(b"HDEL", part, *fields), len(part))
                deleted += sum(map(bool, pipeline.receive()))
    return deleted


@dataclass(frozen=True)
class _Write:
    """How the rows of a batch become commands."""

    view: OnlineView
    timestamp: str
    expire: int | None

    def keys(self, batch: pa.RecordBatch) -> list[bytes]:
        ids = batch.column(self.view.join_key)
        if ids.null_count:
            raise UnsupportedRows(f"Expected a {self.view.join_key} in every row, got a null.")
        return self.view.keys(ids.to_pylist())

    def send(self, pipeline: _Pipeline, batch: pa.RecordBatch, keys: list[bytes]) -> int:
        columns = [
            (field, batch.column(feature))
            for field, feature in zip(self.view.fields, self.view.features, strict=True)
        ]
        times = encode_times(epoch_nanoseconds(batch.column(self.timestamp)))
        data = hash_commands(keys, times, columns, time_field=self.view.time_field, expire=self.expire)
        pipeline.send(data, len(keys) * (1 if self.expire is None else 2))
        return len(keys)

    def send_newer(self, pipeline: _Pipeline, batch: pa.RecordBatch, keys: list[bytes]) -> int:
        """Send the rows that are newer than what is stored, now that the stored times are here."""
        stored = pipeline.receive_replies()
        newer = _newer(epoch_nanoseconds(batch.column(self.timestamp)), stored)
        if not newer.all():
            batch = batch.filter(pa.array(newer))
            keys = [key for key, wins in zip(keys, newer.tolist(), strict=True) if wins]
        return self.send(pipeline, batch, keys) if keys else 0


class _Pipeline:
    """Commands on one connection, several sends ahead of their replies.

    What has no reply yet is kept, and sent again on a new connection when this one breaks: every
    command here may run twice. How often, and after which wait, is the client's own setting.
    """

    def __init__(self, connection: Any, guard: Guard | None) -> None:
        self.waiting: deque[tuple[pa.RecordBatch, list[bytes]]] = (
            deque()
        )  # chunks whose stored times were asked
        self._connection, self._guard = connection, guard
        self._is_new = True
        self._sends: deque[tuple[bytes, int, bool]] = deque()  # without replies: data, replies, asked
        self._on_wire = 0  # how many of them this connection has been given
        self._received: deque[Any] = deque()  # replies that came along with earlier ones

    def send(self, data: bytes, replies: int, *, asked: bool = False) -> None:
        """Send commands; `asked` marks those whose replies `receive_replies` returns."""
        self._sends.append((data, replies, asked))
        self._exchange(0)

    def receive(self) -> list[Any]:
        """The replies to the oldest send."""
        received = self._replies()
        self._sends.popleft()
        self._on_wire -= 1
        for reply in received:
            if isinstance(reply, redis.RedisError):
                raise reply
        return received

    def receive_replies(self) -> list[Any]:
        """The replies to the oldest send that is marked; those before it are checked for errors."""
        while not self._sends[0][2]:
            self.receive()
        return self.receive()

    def drain(self, keep: int = 0) -> None:
        """Wait for replies until at most `keep` sends have none."""
        while len(self._sends) > keep:
            self.receive()

    def _replies(self) -> list[Any]:
        return self._exchange(self._sends[0][1])

    def _exchange(self, replies: int) -> list[Any]:
        """Send what is not on the wire, then read so many replies."""

        def attempt() -> list[Any]:
            waiting = [data for data, _, _ in islice(self._sends, self._on_wire, None)]
            if waiting:
                if self._guard:
                    self._connection.connect()
                    self._guard(connected=self._is_new)
                    self._is_new = False
                # A health check would read a reply that is not its own.
                self._connection.send_packed_command(waiting, check_health=False)
                self._on_wire = len(self._sends)
            return self._read(replies)

        def reset(error: Exception) -> None:
            self._connection.disconnect()
            self._is_new = True
            self._on_wire = 0
            self._received.clear()

        result: list[Any] = self._connection.retry.call_with_retry(attempt, reset)
        return result

    def _read(self, count: int) -> list[Any]:
        while len(self._received) < count:
            try:
                self._received.append(self._connection.read_response(disable_decoding=True))
            except redis.ResponseError as error:
                self._received.append(error)  # the replies after it must be read all the same
            self._received.extend(drain(self._connection)())
        return [self._received.popleft() for _ in range(count)]


class _NodePipeline(_Pipeline):
    """A pipeline to one node of a cluster. What the node does not answer goes through redis-py's cluster client.

    So it is when a slot of keys moves to another node, and when the node is gone.
    """

    def __init__(self, connection: Any, guard: Guard | None, cluster: RedisCluster) -> None:
        super().__init__(connection, guard)
        self._cluster = cluster

    def send(self, data: bytes, replies: int, *, asked: bool = False) -> None:
        with contextlib.suppress(*_GONE):  # found again when its replies are read
            super().send(data, replies, asked=asked)

    def _replies(self) -> list[Any]:
        data, count, _ = self._sends[0]
        try:
            replies = super()._replies()
        except _GONE:
            self._connection.disconnect()
            self._is_new, self._on_wire = True, 1  # this one is done below; those behind it are sent again
            self._received.clear()
            replies = [redis.exceptions.ConnectionError()] * count
        missing = [row for row, reply in enumerate(replies) if isinstance(reply, _GONE + _ELSEWHERE)]
        if missing:
            sent = _parse(data)
            for row in missing:
                replies[row] = self._retry_alone(sent[row])
        return replies

    def _retry_alone(self, command: list[bytes]) -> Any:
        def attempt() -> Any:
            if self._guard:
                self._guard(connected=True)
            return self._cluster.execute_command(command[0].decode(), *command[1:])  # type: ignore[no-untyped-call]

        return patience().call_with_retry(attempt, lambda _: None)


def patience() -> Retry:
    """Until a replica has taken over."""
    return Retry(ExponentialBackoff(cap=2, base=0.1), CLUSTER_RETRIES, (*_GONE, *_ELSEWHERE))  # type: ignore[no-untyped-call]


class _Pipelines:
    """The pipeline of one server, or one for each node of a cluster, opened on first use."""

    def __init__(self, client: redis.Redis, guard: Guard | None) -> None:
        self._client, self._guard = client, guard
        self._open: dict[str, tuple[_Pipeline, Any, Any]] = {}
        self.nodes = len(client.get_primaries()) if isinstance(client, RedisCluster) else 1

    def of(self, keys: Sequence[bytes]) -> Iterator[tuple[_Pipeline, list[int]]]:
        """The pipelines for keys, each with the rows of its keys; without rows: all."""
        if not isinstance(self._client, RedisCluster):
            yield self._pipeline("", self._client), []
            return
        cluster = self._client

        def find() -> list[tuple[_Pipeline, list[int]]]:
            return [
                (self._pipeline(node.name, cluster.get_redis_connection(node)), rows)
                for node, rows in by_node(cluster, keys)
            ]

        def reconnected(_: Exception) -> None:
            with contextlib.suppress(redis.RedisError):
                cluster.nodes_manager.initialize()

        yield from patience().call_with_retry(find, reconnected)

    def __iter__(self) -> Iterator[_Pipeline]:
        return iter([pipeline for pipeline, _, _ in self._open.values()])

    def _pipeline(self, name: str, client: redis.Redis) -> _Pipeline:
        if name not in self._open:
            pool: Any = client.connection_pool
            connection = pool.get_connection()
            pipeline = (
                _NodePipeline(connection, self._guard, self._client)
                if isinstance(self._client, RedisCluster)
                else _Pipeline(connection, self._guard)
            )
            self._open[name] = pipeline, connection, pool
        return self._open[name][0]

    def close(self, *, finished: bool) -> None:
        for _, connection, pool in self._open.values():
            if not finished:
                connection.disconnect()  # replies may be on their way: not for the next user
            pool.release(connection)


@contextlib.contextmanager
def _pipelines(client: redis.Redis, guard: Guard | None) -> Iterator[_Pipelines]:
    pipelines, finished = _Pipelines(client, guard), False
    try:
        yield pipelines
        finished = True
    finally:
        pipelines.close(finished=finished)


def _parse(data: bytes) -> list[list[bytes]]:
    """The commands that `data` holds."""
    commands, position = [], 0

    def line(mark: bytes) -> int:
        nonlocal position
        end = data.index(b"\r\n", position)
        number = int(data[position:end].removeprefix(mark))
        position = end + 2
        return number

    while position < len(data):
        command = []
        for _ in range(line(b"*")):
            size = line(b"$")
            command.append(data[position : position + size])
            position += size + 2
        commands.append(command)
    return commands


def _chunks(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, len(batch), size):
            yield batch.slice(start, size)


def _newer(times: npt.NDArray[np.int64], stored: Sequence[bytes | None]) -> Mask:
    """Which rows [n] are newer than the stored times. As in Feast, one up to 1970 never holds a row back."""
    distinct = {value: codec.decode_timestamp(value) or 0 for value in set(stored)}
    before = np.fromiter(map(distinct.__getitem__, stored), np.int64, len(stored))
    return (before <= 0) | (times // 1_000 * 1_000 > before)


def _last_written(table: pa.Table, key: str, timestamp: str, overwrite: bool) -> npt.NDArray[np.int64]:
    """Rows, in order, whose values are there after Feast has written all rows of a table one by one."""
    times = epoch_nanoseconds(table[timestamp])
    row = np.arange(len(table))
    # Among rows of one positive time the first is written, and no other; without such a rule the last.
    counts = np.zeros_like(times) if overwrite else np.maximum(times // 1_000, 0)
    order = np.lexsort((np.where(counts > 0, -row, row), counts))
    rank = np.empty(len(table), np.int64)
    rank[order] = row
    ranked = pa.table({"key": table[key], "rank": rank}).group_by("key").aggregate([("rank", "max")])
    return np.sort(order[ranked["rank_max"].to_numpy()])
