"""What observers are told, by both clients."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry

from sda_features.errors import OnlineStoreError
from sda_features.serving import AsyncEmbeddingClient, EmbeddingClient
from sda_features.serving.observer import prometheus_observer
from tests.serving.stored import put, record


def test_an_observer_is_told_of_each_request(server, url, project):
    seen = []
    put(server, project, "a", [1] * 3, None)
    record(server, project, "v1", {"v1": 1}, written=(datetime.now(UTC) - timedelta(hours=1)).isoformat())
    with EmbeddingClient(url, project=project, observer=seen.append) as client:
        client.get(["a", "?"])

    async def read():
        async with AsyncEmbeddingClient(url, project=project, observer=seen.append) as client:
            await client.get(["a", "?"])

    asyncio.run(read())
    for told in seen:
        assert (told.items, told.found, told.version, told.error) == (2, 1, "v1", None)
        assert 3600 <= told.record_age < 3700
        assert 0 < told.seconds < 60
    with pytest.raises(OnlineStoreError):
        EmbeddingClient("redis://127.0.0.1:1", project=project, observer=seen.append).get(["a"])
    assert [(told.found, told.error) for told in seen] == [(1, None), (1, None), (0, "OnlineStoreError")]


def test_prometheus(server, url, project):
    registry = CollectorRegistry()
    put(server, project, "a", [1] * 3, None)
    record(server, project, "v1", {"v1": 1}, written=datetime.now(UTC).isoformat())
    observer = prometheus_observer(registry)
    with EmbeddingClient(url, project=project, observer=observer) as client:
        client.get(["a", "?", "?"])
    value = registry.get_sample_value
    assert value("sda_features_items_total") == 3
    assert value("sda_features_items_found_total") == 1
    assert value("sda_features_reads_total", {"version": "v1"}) == 1
    assert value("sda_features_read_seconds_count") == 1
    assert value("sda_features_version_age_seconds") < 60
