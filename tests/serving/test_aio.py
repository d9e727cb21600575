"""The asyncio client gives what the other gives; faults and cancellation on a real server."""

import asyncio

import pytest
from redis import asyncio as async_redis
from redis.backoff import NoBackoff

from sda_features.errors import FeatureMismatchError, OnlineStoreError, SettingsError
from sda_features.serving import AsyncEmbeddingClient, layout
from tests.serving.stored import assert_same, put, record

IDS = [str(number) for number in range(300)]


@pytest.fixture(scope="module")
def project(server, new_project):
    project = new_project()
    for item_id in IDS:
        image = None if item_id.endswith("7") else [2.5] * 3
        put(server, project, item_id, [float(item_id)] * 3, image, at=int(item_id))
        put(server, project, item_id, [0.5] * 3, None, "v2", slot=2)
    record(server, project, "v1", {"v1": 1, "v2": 2})
    return project


def test_it_gives_what_the_other_client_gives(url, client, project):
    asked = [["?", *IDS], IDS[:3], [], IDS[::-1]]

    async def read():
        async with AsyncEmbeddingClient(url, project=project, cache_items=100) as other:
            await other.ping()
            return [await other.get(ids, deadline=60) for ids in asked], await other.get(IDS, "v2")

    found, second = asyncio.run(read())
    for ids, got in zip(asked, found, strict=True):
        assert_same(got, client.get(ids))
    assert_same(second, client.get(IDS, "v2"))
    assert found[0].image_found.sum() == 270


def test_tasks_share_a_client(url, project):
    async def read():
        async with AsyncEmbeddingClient(url, project=project) as client:
            return await asyncio.gather(*(client.get(IDS[shift:]) for shift in range(50)))

    for shift, found in enumerate(asyncio.run(read())):
        assert found.text[:, 0].tolist() == [float(item_id) for item_id in IDS[shift:]]


def test_errors_are_the_same(server, url, project, new_project):
    async def read(address, project, version=None):
        async with AsyncEmbeddingClient(address, project=project) as client:
            return await client.get(["a"], version)

    with pytest.raises(FeatureMismatchError, match="Expected version 'v9'"):
        asyncio.run(read(url, project, "v9"))
    with pytest.raises(OnlineStoreError, match=r"127\.0\.0\.1:1, but it cannot be reached"):
        asyncio.run(read("127.0.0.1:1", project))
    other = new_project()
    server.set(f"sda-features:{other}:sda:versions", b"[]")
    with pytest.raises(OnlineStoreError, match="record in the online store is damaged"):
        asyncio.run(read(url, other))
    decoding = async_redis.Redis.from_url(url, decode_responses=True)
    with pytest.raises(SettingsError, match="decode_responses=False"):
        AsyncEmbeddingClient(decoding, project=project)


def test_a_connection_that_was_lost_or_left_early_is_not_used_again(server, url, project):
    async def read():
        once = async_redis.retry.Retry(NoBackoff(), 1)
        pool = async_redis.ConnectionPool.from_url(url, max_connections=1, retry=once)
        async with async_redis.Redis.from_pool(pool) as own:
            client = AsyncEmbeddingClient(own, project=project)
            await client.get(IDS)
            server.client_kill_filter(_id=await own.client_id())
            await client.get(IDS)
            server.client_pause(400)
            with pytest.raises(OnlineStoreError, match="deadline of the call passed"):
                await client.get(IDS, deadline=0.05)
            task = asyncio.create_task(client.get(IDS[::-1]))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            server.client_unpause()
            return await client.get(IDS[:5])

    assert asyncio.run(read()).text[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_a_key_that_is_no_hash(server, url, new_project):
    project = new_project()
    server.set(layout.redis_keys(["b"], project=project)[0], "text")

    async def read():
        async with AsyncEmbeddingClient(url, project=project) as client:
            with pytest.raises(OnlineStoreError, match="something else than Feast's hashes"):
                await client.get(["a", "b", "c"])
            return await client.get(["a"])

    assert asyncio.run(read()).versions == (None,)
