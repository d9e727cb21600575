"""The ways in which Redis is run: a cluster, Sentinel, users with few rights, TLS. All real, on loopback."""

import asyncio
import shutil

import pytest
import redis
from redis.cluster import RedisCluster

from sda_features.errors import OnlineStoreError
from sda_features.serving import AsyncEmbeddingClient, EmbeddingClient
from sda_features.serving.connection import RedisAddress
from sda_features.serving.pointer import pointer_key
from sda_features.serving.repo_config import read_repo_config
from tests.serving import servers
from tests.serving.stored import put, record

IDS = [str(number) for number in range(60)]
SECRET = "s3cret"


def fill(server):
    for item_id in IDS:
        put(server, "shop", item_id, [float(item_id)] * 3, [1, 2, 3])
    record(server, "shop", "v1", {"v1": 1})


def write_repo(folder, online_store):
    (folder / "feature_store.yaml").write_text(f"project: shop\nonline_store: {{{online_store}}}\n")
    return folder


def check(repo):
    """Both clients of a repo read what `fill` wrote."""

    async def read():
        async with AsyncEmbeddingClient.from_repo(repo) as client:
            await client.ping()
            return await client.get([*IDS, "?"], deadline=60)

    with EmbeddingClient.from_repo(repo) as client:
        client.ping()
        found = client.get([*IDS, "?"], deadline=60)
        for _ in range(2):  # without an unknown item the second reply is taken as a block
            assert client.get(IDS).text[:, 0].tolist() == [*map(float, IDS)]
    for vectors in (found, asyncio.run(read())):
        assert vectors.text[:, 0].tolist() == [*map(float, IDS), 0]
        assert vectors.image_found.tolist() == [True] * len(IDS) + [False]
        assert set(vectors.versions) == {"v1", None}


@pytest.fixture(scope="module")
def cluster():
    with servers.cluster() as ports:
        yield ports


def test_a_cluster_is_read_from_any_of_its_nodes(cluster, tmp_path):
    with RedisCluster(servers.HOST, cluster[0]) as client:
        fill(client)
        held = [client.get_redis_connection(node).dbsize() for node in client.get_nodes()]
        assert len(held) == 3
        assert all(held)
    for ports in (cluster, [1, cluster[2]]):  # the first of the second is down
        nodes = ",".join(f"{servers.HOST}:{port}" for port in ports)
        check(write_repo(tmp_path, f"type: redis, redis_type: redis_cluster, connection_string: '{nodes}'"))


def test_a_cluster_client_of_your_own(cluster):
    with RedisCluster(servers.HOST, cluster[1]) as client:
        fill(client)
        reader = EmbeddingClient(client, project="shop")
        assert reader.get(IDS).text_found.all()
        assert f"{servers.HOST}:{cluster[0]}" in reader.address


def test_slots_that_move_to_another_node_are_followed(cluster):
    key = pointer_key("shop", "sda")
    with RedisCluster(servers.HOST, cluster[0]) as client:
        fill(client)
        reader = EmbeddingClient(client, project="shop")
        reader.get(IDS)
        slot = client.keyslot(key)
        owner = client.get_node_from_key(key).port
        target = next(port for port in cluster if port != owner)
        servers.move_slot(client, slot, target)
        assert reader.get(IDS).text_found.all()
        assert reader.get(IDS).versions == ("v1",) * len(IDS)


def test_a_node_of_a_cluster_taken_for_a_server(cluster):
    with pytest.raises(OnlineStoreError, match="node of a cluster. Set redis_type to redis_cluster"):
        EmbeddingClient(f"{servers.HOST}:{cluster[0]}", project="shop").get(IDS)


def test_a_cluster_that_is_not_there():
    address = RedisAddress.parse(f"127.0.0.1:1,127.0.0.1:2,password={SECRET}", "redis_cluster")
    refusal = r"127\.0\.0\.1:1,127\.0\.0\.1:2, but no node of the cluster can be reached"
    with pytest.raises(OnlineStoreError, match=refusal) as raised:
        EmbeddingClient(address, project="shop", timeout=0.2)
    assert SECRET not in str(raised.value)


def test_sentinel_names_the_master(tmp_path):
    with servers.server() as port, redis.Redis(servers.HOST, port) as master:
        fill(master)
        with servers.sentinel(tmp_path, port, "vectors") as watcher:
            at = f"connection_string: '127.0.0.1:1,127.0.0.1:{watcher}'"
            store = f"type: redis, redis_type: redis_sentinel, {at}, sentinel_master:"
            check(write_repo(tmp_path, f"{store} vectors"))
            with pytest.raises(OnlineStoreError, match=r"\(master other\), but"):
                EmbeddingClient.from_repo(write_repo(tmp_path, f"{store} other")).get(IDS)


def test_the_rights_that_a_reader_needs(tmp_path):
    with servers.server() as port, redis.Redis(servers.HOST, port) as admin:
        fill(admin)
        admin.acl_setuser(
            "ranker", enabled=True, passwords=[f"+{SECRET}"], keys=["*"], commands=["+hmget", "+get"]
        )
        address = f"{servers.HOST}:{port},username=ranker,password={SECRET}"
        repo = write_repo(tmp_path, f"type: redis, connection_string: '{address}'")
        with EmbeddingClient.from_repo(repo) as client:
            assert client.get(IDS).text_found.all()
        ranker = redis.Redis(servers.HOST, port, username="ranker", password=SECRET)
        with pytest.raises(redis.exceptions.NoPermissionError):
            ranker.hset("a", "b", "c")
        admin.acl_setuser("ranker", enabled=True, commands=["-hmget"])
        advice = "lacks rights .*Allow it the commands HMGET and GET"
        with pytest.raises(OnlineStoreError, match=advice) as raised:
            EmbeddingClient.from_repo(repo).get(IDS)
        assert SECRET not in str(raised.value)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_tls(redis_server, server, tmp_path):
    """The wheel's server has no TLS: a TLS end before it, as in front of many servers."""
    fill(server)
    certificate, key = servers.make_certificate(tmp_path)
    with servers.tls_end(redis_server[1], certificate, key) as port:
        at = f"{servers.HOST}:{port}"
        trusting = f"connection_string: '{at},ssl=true,ssl_ca_certs={certificate}'"
        check(write_repo(tmp_path, f"type: redis, {trusting}"))
        with EmbeddingClient(f"rediss://{at}?ssl_ca_certs={certificate}", project="shop") as client:
            assert client.get(IDS).text_found.all()
        for distrusting in (f"rediss://{at}", f"{at},ssl=true"):
            advice = "TLS failed: name its certificate authority with ssl_ca_certs"
            with pytest.raises(OnlineStoreError, match=advice):
                EmbeddingClient(distrusting, project="shop").get(IDS)


def test_options_reach_every_kind_of_client(tmp_path):
    text = f"a:1,b:2,db=3,ssl=true,username=u,password={SECRET}"
    repo = write_repo(tmp_path, f"type: redis, redis_type: redis_sentinel, connection_string: '{text}'")
    address = read_repo_config(repo).redis_address()
    assert SECRET not in f"{address} {address!r}"
    for client in (address.connect(timeout=1), address.connect_async(timeout=1)):
        pool = client.connection_pool
        assert pool.connection_class.__name__ == "SentinelManagedSSLConnection"
        options = pool.connection_kwargs
        assert (options["db"], options["username"], options["password"]) == (3, "u", SECRET)
        watching = [
            sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels
        ]
        assert [options["port"] for options in watching] == [1, 2]
