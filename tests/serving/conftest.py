"""Filling a server as Feast does, for every test of serving."""

from collections.abc import Iterator

import pytest
import redis

from sda_features.serving import codec, layout
from sda_features.serving.pointer import Pointer, StoredVersion, move_pointer, pointer_key
from tests.reference import redis_layout as reference


@pytest.fixture(scope="module")
def server(redis_server) -> Iterator[redis.Redis]:
    with redis.Redis(*redis_server) as client:
        yield client


@pytest.fixture(scope="session")
def put():
    """Write one item's hash."""

    def put(server, project, item_id, text=None, image=None, version="v1", *, slot=1, view=None, at=0, **key):
        (name,) = layout.redis_keys([item_id], project=project, **key)
        view = view or layout.view_name("sda", slot)
        vectors = [reference.vector(numbers) for numbers in (text, image)]
        fields = [layout.hash_field(view, feature) for feature in layout.FEATURES]
        row = dict(zip(fields, [*vectors, codec.encode_string(version)], strict=True))
        server.hset(name, mapping={**row, layout.timestamp_field(view): codec.encode_timestamp(at)})

    return put


@pytest.fixture(scope="session")
def record():
    """Write the version record: `record(server, project, live, slots)`, slots by version."""

    def record(server, project, live, slots, *, dim=3, written="2026-01-01", previous=None):
        versions = {
            version: StoredVersion(version, slot, 1, dim, "float32", written)
            for version, slot in slots.items()
        }
        move_pointer(server, pointer_key(project, "sda"), lambda _: Pointer(live, previous, versions))

    return record
