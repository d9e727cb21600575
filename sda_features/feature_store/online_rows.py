"""What a slot has in Redis: which of its rows are missing there, and their deletion by exact key."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import redis

from sda_features.feature_store.redis_writer import OnlineView, delete_view_rows
from sda_features.feature_store.repo import FeatureSet
from sda_features.feature_store.schema import EVENT_TIMESTAMP, ITEM_ID
from sda_features.serving import codec, layout
from sda_features.serving.connection import RedisAddress, redis_errors
from sda_features.serving.wire import fetch_fields

BATCH_KEYS = 10_000
TIMEOUT = 10.0  # seconds; a busy server that loads a catalogue may take a while


def check_online_store(opened: FeatureSet) -> RedisAddress | None:
    """Look whether the repo's Redis server answers; None for another kind of online store, unchecked.

    Raises:
        OnlineStoreError: it does not.
    """
    if not opened.config.has_plain_redis:
        return None
    address = opened.config.redis_address()
    with redis_errors(address), address.connect(timeout=TIMEOUT) as server:
        server.ping()
    return address


def online_view(opened: FeatureSet) -> OnlineView:
    """A slot as Redis holds it."""
    return OnlineView(
        opened.config.project, opened.view.name, layout.FEATURES, opened.join_key, opened.id_type
    )


@contextlib.contextmanager
def online_server(opened: FeatureSet) -> Iterator[redis.Redis | None]:
    """A client of the repo's Redis server, closed after the block; None for another kind of online store.

    Raises:
        OnlineStoreError: the server does not answer, or fails in the block.
    """
    address = check_online_store(opened)
    if address is None:
        yield None
        return
    with redis_errors(address), address.connect(timeout=TIMEOUT) as server:
        yield server


def missing_online(server: redis.Redis, opened: FeatureSet, rows: pa.Table) -> list[int]:
    """Positions of the rows whose event timestamp, or a later one, is not in Redis.

    Args:
        server: the online store.
        opened: the slot.
        rows: item_id and event_timestamp.
    """
    view = online_view(opened)
    keys = view.keys(rows[ITEM_ID].to_pylist())
    expected = pc.cast(rows[EVENT_TIMESTAMP], pa.int64()).to_pylist()  # microseconds
    missing = []
    for start in range(0, len(keys), BATCH_KEYS):
        stored, _ = fetch_fields(server, keys[start : start + BATCH_KEYS], [view.time_field])
        for row, (value,) in enumerate(stored, start):
            nanoseconds = codec.decode_timestamp(value)
            if nanoseconds is None or nanoseconds // 1000 < expected[row]:
                missing.append(row)
    return missing


def delete_online(opened: FeatureSet, item_ids: Sequence[str | int]) -> None:
    """Delete the fields of one view from the hashes of items; other views and other keys stay.

    Feast has no deletion of rows, so with an online store that is not a Redis server nothing
    happens: there, a removed item keeps its last vectors.
    """
    if item_ids:
        with online_server(opened) as server:
            if server is not None:
                delete_view_rows(server, online_view(opened), item_ids)
