"""Rows kept in the process: what is asked for, what is pushed out, what a new version does to them."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from sda_features.errors import SettingsError
from sda_features.serving import EmbeddingClient, layout
from sda_features.serving.cache import CacheStatistics, RowCache
from tests.serving.stored import put, record


def rows(*ids):
    return {item_id: [item_id.encode()] for item_id in ids}


def test_the_least_recently_used_row_goes_first():
    cache = RowCache(2)
    cache.put("v1", rows("a", "b"))
    assert cache.get("v1", ["a"]) == rows("a")
    cache.put("v1", rows("c"))
    assert cache.get("v1", ["a", "b", "c"]) == rows("a", "c")
    assert cache.get("v2", ["a"]) == {}
    assert cache.statistics == CacheStatistics(hits=3, misses=2, items=2)
    with pytest.raises(SettingsError, match="at least one item, got -1"):
        RowCache(-1)


def test_threads_share_it():
    cache = RowCache(10)

    def use(shift):
        for number in range(2000):
            name = f"{(number + shift) % 25}"
            cache.put("v", rows(name))
            assert cache.get("v", [name]) in ({}, rows(name))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(use, range(4)))
    assert cache.statistics.items == 10
    assert cache.statistics.hits + cache.statistics.misses == 8000


@pytest.fixture
def project(server, new_project):
    project = new_project()
    for slot in (1, 2):
        for number, item_id in enumerate("abc"):
            put(server, project, item_id, [number] * 3, [slot] * 3, f"v{slot}", slot=slot)
    record(server, project, "v1", {"v1": 1, "v2": 2})
    return project


@pytest.fixture
def hashes_read(server):
    """Hashes that the server was asked for since the last call."""

    def count():
        reads = server.info("commandstats").get("cmdstat_hmget", {"calls": 0})["calls"]
        server.config_resetstat()
        return reads

    count()
    return count


@pytest.fixture
def client(url, project):
    with EmbeddingClient(url, project=project, cache_items=10) as client:
        yield client


def test_only_what_is_not_kept_is_asked_for(client, hashes_read):
    first = client.get(["b", "?", "b"])
    assert hashes_read() == 3
    again = client.get(["?", "c", "b"])
    assert hashes_read() == 1
    assert client.get(["b", "c", "?"]).versions == ("v1", "v1", None)
    assert hashes_read() == 0
    assert client.cache_statistics == CacheStatistics(hits=5, misses=4, items=3)
    assert first.text.tolist() == [[1] * 3, [0] * 3, [1] * 3]
    assert again.text.tolist() == [[0] * 3, [2] * 3, [1] * 3]
    assert again.text_found.tolist() == [False, True, True]


def test_another_version_is_read_anew(server, project, client, hashes_read):
    assert client.get(["a", "b"]).image[:, 0].tolist() == [1, 1]
    record(server, project, "v2", {"v1": 1, "v2": 2})
    assert client.get(["a", "b"]).image[:, 0].tolist() == [2, 2]
    hashes_read()
    assert client.get(["b", "a"], "v1").image[:, 0].tolist() == [1, 1]
    assert client.get(["b", "a"], "v2").image[:, 0].tolist() == [2, 2]
    assert hashes_read() == 0


def test_the_same_version_written_again_is_read_anew(server, project, client):
    client.get(["a", "new"])
    put(server, project, "a", [9] * 3, None)
    put(server, project, "new", [8] * 3, None)
    record(server, project, "v1", {"v1": 1, "v2": 2}, written="2026-01-02")
    assert client.get(["a", "new"]).text[:, 0].tolist() == [9, 8]


def test_nothing_is_kept_without_a_record(server, url, new_project):
    project = new_project()
    put(server, project, "a", [1] * 3)
    with EmbeddingClient(url, project=project, cache_items=10) as client:
        client.get(["a"])
        put(server, project, "a", [2] * 3)
        assert client.get(["a"]).text.tolist() == [[2] * 3]
        assert client.cache_statistics == CacheStatistics()


def test_a_wrong_row_is_not_kept(server, project, client):
    put(server, project, "a", [1] * 4)
    with pytest.raises(ValueError, match="dimension 4, expected 3"):
        client.get(["a"])
    server.delete(*layout.redis_keys(["a"], project=project))
    assert client.get(["a"]).versions == (None,)
