"""What a slot has in Redis: rows that are missing there, rows that nobody knows, deletion by exact key."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import redis
from redis.cluster import RedisCluster

from sda_features.feature_store.repo import FeatureSet
from sda_features.offline.schema import EVENT_TIMESTAMP, ITEM_ID, typed_ids
from sda_features.online.lease import RETRIES, TIMEOUT, current_lease
from sda_features.online.pipelines import Guard, nodes_of, patience
from sda_features.online.writer import OnlineView, delete_view_keys, write_batches
from sda_features.serving import codec, layout
from sda_features.serving.connection import RedisAddress, redis_errors
from sda_features.serving.wire import fetch_fields

BATCH_ROWS = 10_000


def check_online_store(opened: FeatureSet) -> RedisAddress | None:
    """Look whether the repo's Redis answers; None for another kind of online store, unchecked.

    Raises:
        OnlineStoreError: it does not; while this process holds a slot, not for some seconds.
    """
    if not opened.config.has_redis:
        return None
    address = opened.config.redis_address()
    retries = RETRIES if current_lease() else 1
    with redis_errors(address), address.connect(timeout=TIMEOUT, retries=retries) as server:
        server.ping()
    return address


def online_view(opened: FeatureSet) -> OnlineView:
    """A slot as Redis holds it."""
    return OnlineView(
        opened.config.project, opened.view.name, layout.FEATURES, opened.join_key, opened.id_type
    )


@contextlib.contextmanager
def online_server(opened: FeatureSet) -> Iterator[redis.Redis | None]:
    """A client of the repo's Redis, closed after the block; None for another kind of online store.

    A server that does not answer at first is an error at once; one that goes away later is waited for.

    Raises:
        OnlineStoreError: the server does not answer, or fails in the block.
    """
    address = check_online_store(opened)
    if address is None:
        yield None
        return
    with redis_errors(address), address.connect(timeout=TIMEOUT, retries=RETRIES) as server:
        yield server


def missing_online(server: redis.Redis, opened: FeatureSet, rows: pa.Table) -> tuple[list[int], list[int]]:
    """Rows that are not in Redis as they should be.

    Args:
        server: the online store.
        opened: the slot.
        rows: item_id, adapter_version and event_timestamp.

    Returns:
        Positions of the rows that are not there with their event timestamp or a later one; and of
        those that are there with another version, which are among the first.
    """
    view = online_view(opened)
    fields = [view.time_field, layout.hash_field(view.view, layout.VERSION)]
    missing, foreign = [], []
    for start in range(0, len(rows), BATCH_ROWS):
        batch = rows.slice(start, BATCH_ROWS)
        read = partial(fetch_fields, server, view.keys(batch[ITEM_ID].to_pylist()), fields)
        is_cluster = isinstance(server, RedisCluster)  # redis-py's other clients wait by themselves
        stored, _ = patience().call_with_retry(read, lambda _: None) if is_cluster else read()
        times = pc.cast(batch[EVENT_TIMESTAMP], pa.int64()).to_pylist()  # microseconds
        versions = map(codec.encode_string, batch[layout.VERSION].to_pylist())
        answers = zip(stored, times, versions, strict=True)
        for row, ((value, version), time, expected) in enumerate(answers, start):
            nanoseconds = codec.decode_timestamp(value)
            if version and version != expected:
                foreign.append(row)
            elif nanoseconds is not None and nanoseconds // 1000 >= time and version:
                continue
            missing.append(row)
    return missing, foreign


def delete_online(opened: FeatureSet, item_ids: Sequence[str | int]) -> int:
    """Delete the fields of one view from the hashes of items; other views and other keys stay.

    Feast has no deletion of rows, so with an online store that is not Redis nothing happens:
    there, a removed item keeps its last vectors.

    Returns:
        Items that had a row.
    """
    if not item_ids:
        return 0
    with writing_client(opened) as (server, guard):
        view = online_view(opened)
        return delete_view_keys(server, view, view.keys(item_ids), guard) if server is not None else 0


def write_online(opened: FeatureSet, table: pa.Table) -> bool:
    """Write rows of `schema.SCHEMA` past Feast, by its rule; False, and nothing, if the store is not Redis."""
    view = online_view(opened)
    rows = table.select([*view.features, EVENT_TIMESTAMP])
    rows = rows.append_column(view.join_key, typed_ids(table, opened.id_type))
    with writing_client(opened) as (server, guard):
        if server is None:
            return False
        write_batches(server, view, rows.to_batches(), timestamp=EVENT_TIMESTAMP, guard=guard)
        return True


@contextlib.contextmanager
def writing_client(opened: FeatureSet) -> Iterator[tuple[redis.Redis | None, Guard | None]]:
    """The client of the lease that this process holds, and its guard; without a lease, a client."""
    if lease := current_lease():
        with redis_errors(opened.config.redis_address()):
            yield lease.client, lease.check
    else:
        with online_server(opened) as server:
            yield server, None


def orphans_online(server: redis.Redis, opened: FeatureSet, rows: pa.Table) -> Iterator[list[bytes]]:
    """Keys that hold a row of a slot which is not among `rows`, some at a time: a scan of the whole server."""
    view = online_view(opened)
    known = set(view.keys(rows[ITEM_ID].to_pylist()))
    for node in nodes_of(server).values():
        cursor = -1
        while cursor:
            cursor, keys = node.scan(max(cursor, 0), match=view.key_pattern, count=BATCH_ROWS, _type="hash")
            keys = [key for key in keys if view.owns(key) and key not in known]
            stored, _ = fetch_fields(server, keys, [view.time_field, *view.fields])
            if found := [
                key for key, row in zip(keys, stored, strict=True) if any(v is not None for v in row)
            ]:
                yield found


def sweep_online(opened: FeatureSet, rows: pa.Table) -> int:
    """Delete the rows of a slot online that are not among `rows`; return how many there were."""
    with writing_client(opened) as (server, guard):
        assert server is not None  # versions are recorded in Redis alone
        orphans = orphans_online(server, opened, rows)
        return sum(delete_view_keys(server, online_view(opened), keys, guard) for keys in orphans)
