"""Commands on their way to Redis, several sends ahead of their replies, on a connection of redis-py."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeAlias

import pyarrow as pa
import redis
from redis.backoff import ExponentialBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry

from sda_features.serving.wire import ELSEWHERE, GONE, borrowed, by_node, drain

Guard: TypeAlias = Callable[..., None]
"""Called before each send, with `connected=True` when the connection is new; raises if this process may not write."""

CLUSTER_RETRIES = 12  # of one command, some twenty seconds in all: a replica takes over in that time


class Pipeline:
    """Commands on one connection, several sends ahead of their replies.

    What has no reply yet is kept, and sent again on a new connection when this one breaks: every
    command here may run twice. How often, and after which wait, is the client's own setting.
    """

    def __init__(self, connection: Any, guard: Guard | None) -> None:
        # Chunks whose stored times were asked.
        self.waiting: deque[tuple[pa.RecordBatch, list[bytes]]] = deque()
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


class NodePipeline(Pipeline):
    """A pipeline to one node of a cluster. What the node does not answer goes through redis-py's cluster client.

    So it is when a slot of keys moves to another node, and when the node is gone.
    """

    def __init__(self, connection: Any, guard: Guard | None, cluster: RedisCluster) -> None:
        super().__init__(connection, guard)
        self._cluster = cluster

    def send(self, data: bytes, replies: int, *, asked: bool = False) -> None:
        """See `Pipeline`."""
        with contextlib.suppress(*GONE):  # found again when its replies are read
            super().send(data, replies, asked=asked)

    def _replies(self) -> list[Any]:
        data, count, _ = self._sends[0]
        try:
            replies = super()._replies()
        except GONE:
            self._connection.disconnect()
            self._is_new, self._on_wire = True, 1  # this one is done below; those behind it are sent again
            self._received.clear()
            replies = [redis.exceptions.ConnectionError()] * count
        missing = [row for row, reply in enumerate(replies) if isinstance(reply, GONE + ELSEWHERE)]
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


def nodes_of(server: Any) -> dict[str, Any]:
    """A client of each node of a cluster, by its address; of one server, that server's."""
    if isinstance(server, RedisCluster):
        return {node.name: server.get_redis_connection(node) for node in server.get_primaries()}  # type: ignore[no-untyped-call]
    return {"server": server}


def patience() -> Retry:
    """Until a replica has taken over."""
    return Retry(ExponentialBackoff(cap=2, base=0.1), CLUSTER_RETRIES, (*GONE, *ELSEWHERE))  # type: ignore[no-untyped-call]


class Pipelines(contextlib.ExitStack):
    """The pipeline of one server, or one for each node of a cluster, opened on first use.

    After an exception in its block their connections are not used again.
    """

    def __init__(self, client: redis.Redis, guard: Guard | None) -> None:
        super().__init__()
        self._client, self._guard = client, guard
        self._open: dict[str, Pipeline] = {}
        self.nodes = len(nodes_of(client))

    def of(self, keys: Sequence[bytes]) -> Iterator[tuple[Pipeline, list[int]]]:
        """The pipelines for keys, each with the rows of its keys; without rows: all."""
        if not isinstance(self._client, RedisCluster):
            yield self._pipeline("", self._client), []
            return
        cluster = self._client

        def find() -> list[tuple[Pipeline, list[int]]]:
            return [
                (self._pipeline(node.name, cluster.get_redis_connection(node)), rows)
                for node, rows in by_node(cluster, keys)
            ]

        def reconnected(_: Exception) -> None:
            with contextlib.suppress(redis.RedisError):
                cluster.nodes_manager.initialize()

        yield from patience().call_with_retry(find, reconnected)

    def __iter__(self) -> Iterator[Pipeline]:
        return iter(self._open.values())

    def _pipeline(self, name: str, client: redis.Redis) -> Pipeline:
        if name not in self._open:
            connection = self.enter_context(borrowed(client.connection_pool))
            if isinstance(self._client, RedisCluster):
                self._open[name] = NodePipeline(connection, self._guard, self._client)
            else:
                self._open[name] = Pipeline(connection, self._guard)
        return self._open[name]


def _parse(data: bytes) -> list[list[bytes]]:
    """The commands that `data` holds."""
    import hiredis  # comes with feast[redis]

    reader = hiredis.Reader()
    reader.feed(data)
    return list(iter(reader.gets, False))
