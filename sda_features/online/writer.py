"""Rows of a feature view into Redis, as stock Feast writes them and near the speed of raw bytes.

Feast turns every vector into Python floats and a protobuf message. Here commands are put together
from Arrow buffers (commands.py) and go through a connection of the caller's own client, so
TLS, users, time-outs and retries are redis-py's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import redis

from sda_features.offline.latest import epoch_nanoseconds
from sda_features.online.commands import UnsupportedRows, commands, encode_times, hash_commands
from sda_features.online.pipelines import Guard, Pipeline, Pipelines
from sda_features.serving import codec, layout
from sda_features.serving.codec import Mask
from sda_features.serving.layout import IdType

progress: ContextVar[Callable[[int], object]] = ContextVar("progress", default=lambda rows: None)
"""Called with the rows of each chunk that `write_batches` has sent; Feast, between, hands no such thing on."""

CHUNK_ROWS = 256  # in one send
AHEAD = 3  # chunks on their way while the next is prepared


@dataclass(frozen=True)
class OnlineView:
    """A feature view with one join key, as Redis holds it; `id_type` is the type of its entity's values."""

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
        prefix = layout.key_prefix(self.join_key, self.id_type)
        start = len(prefix) + 4
        length = int.from_bytes(key[len(prefix) : start], "little")
        return key.startswith(prefix) and key[start + length :] == self.project.encode()


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
    with Pipelines(client, guard) as pipelines:
        for batch in _chunks(batches, CHUNK_ROWS * pipelines.nodes):
            keys = write.keys(batch)
            for pipeline, rows in pipelines.of(keys):
                part, part_keys = batch, keys
                if rows:
                    part, part_keys = batch.take(pa.array(rows)), [keys[row] for row in rows]
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


def delete_view_keys(
    client: redis.Redis, view: OnlineView, keys: Sequence[bytes], guard: Guard | None = None
) -> int:
    """Delete the fields of one view for some entities, by their exact keys (`view.keys`).

    Other views of the entities stay, and so does everything of other projects. Redis drops a hash
    that has no field left.

    Returns:
        Entities that had a row of the view.
    """
    deleted = 0
    fields = [view.time_field, *view.fields]
    with Pipelines(client, guard) as pipelines:
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

    def send(self, pipeline: Pipeline, batch: pa.RecordBatch, keys: list[bytes]) -> int:
        columns = list(zip(self.view.fields, map(batch.column, self.view.features), strict=True))
        times = encode_times(epoch_nanoseconds(batch.column(self.timestamp)))
        data = hash_commands(keys, times, columns, time_field=self.view.time_field, expire=self.expire)
        pipeline.send(data, len(keys) * (1 if self.expire is None else 2))
        return len(keys)

    def send_newer(self, pipeline: Pipeline, batch: pa.RecordBatch, keys: list[bytes]) -> int:
        """Send the rows that are newer than what is stored, now that the stored times are here."""
        stored = pipeline.receive_replies()
        newer = _newer(epoch_nanoseconds(batch.column(self.timestamp)), stored)
        if not newer.all():
            batch = batch.filter(pa.array(newer))
            keys = [key for key, wins in zip(keys, newer.tolist(), strict=True) if wins]
        return self.send(pipeline, batch, keys) if keys else 0


def _chunks(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, len(batch), size):
            yield batch.slice(start, size)


def _newer(times: npt.NDArray[np.int64], stored: Sequence[bytes | None]) -> Mask:
    """Which rows [n] are newer than the stored times. As in Feast, one up to 1970 never holds a row back."""
    distinct = {value: codec.decode_timestamp(value) or 0 for value in set(stored)}
    before = np.fromiter(map(distinct.__getitem__, stored), np.int64, len(stored))
    return (before <= 0) | (times // 1_000 * 1_000 > before)
