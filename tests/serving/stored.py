"""Filling a server as Feast does, and looking at what is read from it."""

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from sda_features.serving import codec, layout
from sda_features.serving.pointer import Pointer, StoredVersion, move_pointer, pointer_key
from tests.reference import redis_layout as reference


def put(server, project, item_id, text=None, image=None, version="v1", *, slot=1, view=None, at=0, **key):
    """Write one item's hash."""
    (name,) = layout.redis_keys([item_id], project=project, **key)
    view = view or layout.view_name("sda", slot)
    fields = [layout.hash_field(view, feature) for feature in layout.FEATURES]
    values = [reference.vector(text), reference.vector(image), codec.encode_string(version)]
    row = dict(zip(fields, values, strict=True))
    server.hset(name, mapping={**row, layout.timestamp_field(view): codec.encode_timestamp(at)})


def record(server, project, live, slots, *, dim=3, written="2026-01-01"):
    """Write the version record; `slots` by version."""
    versions = {
        version: StoredVersion(version, slot, 1, dim, "float32", written) for version, slot in slots.items()
    }
    move_pointer(server, pointer_key(project, "sda"), lambda _: Pointer(live, None, versions))


def one_connection(url, *, retries=1, **options):
    """A client with one connection, by settings that redis-py has for connections alone."""
    options["retry"] = Retry(NoBackoff(), retries)
    return redis.Redis.from_pool(redis.ConnectionPool.from_url(url, max_connections=1, **options))


def piped(server, keys, fields):
    """The fields of hashes, through redis-py's own pipeline."""
    with server.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.hmget(key, fields)
        return pipeline.execute()


def assert_same(left, right):
    """Bit for bit, types included."""
    assert (left.item_ids, left.versions) == (right.item_ids, right.versions)
    for name in ("text", "text_found", "image", "image_found", "event_times"):
        ours, theirs = getattr(left, name), getattr(right, name)
        assert (ours.dtype, ours.tobytes()) == (theirs.dtype, theirs.tobytes())
