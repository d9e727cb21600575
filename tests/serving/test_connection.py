"""Addresses and feature_store.yaml."""

import pytest

from sda_features.errors import FeatureStoreError, OnlineStoreError
from sda_features.serving.connection import RedisAddress
from sda_features.serving.repo_config import read_repo_config

SECRET = "s3cret"


@pytest.mark.parametrize(
    ("text", "host", "port", "options"),
    [
        ("localhost:6379", "localhost", 6379, {}),
        ("redis.shop", "redis.shop", 6379, {}),
        (
            f"h:7000,db=2,ssl=true,password={SECRET},socket_timeout=0.5",
            "h",
            7000,
            {"db": 2, "ssl": True, "password": SECRET, "socket_timeout": 0.5},
        ),
        ("h:1,password=12345=,username=007", "h", 1, {"password": "12345=", "username": "007"}),
        (
            f"redis://u:{SECRET}@h:7000/3",
            "h",
            7000,
            {"db": 3, "username": "u", "password": SECRET, "ssl": False},
        ),
        ("rediss://h", "h", 6379, {"ssl": True}),
        (
            "unix:///run/redis.sock",
            "/run/redis.sock",
            0,
            {"unix_socket_path": "/run/redis.sock", "ssl": False},
        ),
    ],
)
def test_addresses(text, host, port, options):
    address = RedisAddress.parse(text)
    assert (address.host, address.port, dict(address.options)) == (host, port, options)
    assert SECRET not in f"{address} {address!r}"


def test_feast_reads_the_same():
    from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig

    text = f"h:7000,db=2,ssl=true,password={SECRET},socket_timeout=0.5"
    (node,), options = RedisOnlineStore._parse_connection_string(text)
    address = RedisAddress.parse(text)
    assert (address.host, str(address.port), address.options) == (node["host"], node["port"], options)
    assert RedisOnlineStoreConfig().sentinel_master == address.sentinel_master

    nodes, _ = RedisOnlineStore._parse_connection_string("a:1,b:2,ssl=true")
    address = RedisAddress.parse("a:1,b:2,ssl=true", "redis_cluster")
    assert [{"host": host, "port": str(port)} for host, port in [("a", 1), *address.others]] == nodes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:1,b:2", "got 2 servers"),
        ("", "got 0 servers"),
        (f"host:port,password={SECRET}", "port is not a number"),
        ("host:99999", "port is not a number"),
        (f"redis://u:{SECRET}@host:port", "Redis URL cannot be read"),
        (f"http://u:{SECRET}@host", "Redis URL cannot be read"),
        ("${SDA_UNSET}", "SDA_UNSET, which is not set"),
    ],
)
def test_an_unreadable_address(text, message):
    with pytest.raises(OnlineStoreError, match=message) as raised:
        RedisAddress.parse(text)
    assert SECRET not in str(raised.value)


def test_an_unknown_option():
    with pytest.raises(OnlineStoreError, match="option of the connection string is unknown") as raised:
        RedisAddress.parse(f"h:1,password={SECRET},colour=red").connect(timeout=1)
    assert SECRET not in str(raised.value)


def write(repo, text):
    (repo / "feature_store.yaml").write_text(text)
    return repo


def test_a_repo_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SDA_TEST_REDIS", f"h:7000,password={SECRET}")
    text = "project: shop\nonline_store: {type: redis, connection_string: '${SDA_TEST_REDIS}'}\n"
    config = read_repo_config(write(tmp_path, text))
    assert config.project == "shop"
    assert str(config.redis_address()) == "h:7000"
    assert SECRET not in repr(config)


def test_feasts_variable_names_another_file(tmp_path, monkeypatch):
    write(tmp_path, "project: one")
    other = tmp_path / "other.yaml"
    other.write_text("project: two")
    monkeypatch.setenv("FEAST_FS_YAML_FILE_PATH", str(other))
    assert read_repo_config(tmp_path).project == "two"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("project: shop\nentity_key_serialization_version: 2", "entity_key_serialization_version: 3"),
        ("registry: r.db", "mapping with `project`"),
        (f"project: [{SECRET}", "cannot be read as YAML"),
        (
            "project: a\nregistry: {enable_online_feature_view_versioning: true}",
            "renames the stored features",
        ),
    ],
)
def test_an_unreadable_repo_file(tmp_path, text, message):
    with pytest.raises(FeatureStoreError, match=message) as raised:
        read_repo_config(write(tmp_path, text))
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("online_store", "got"),
    [
        ("", "got sqlite"),
        ("online_store: {type: dynamodb}", "got dynamodb"),
        ("online_store: {type: redis, redis_type: rediss}", "got redis rediss"),
    ],
)
def test_another_online_store(tmp_path, online_store, got):
    config = read_repo_config(write(tmp_path, f"project: a\n{online_store}"))
    with pytest.raises(OnlineStoreError, match=got):
        config.redis_address()


def test_no_repo_and_the_folder_below(tmp_path):
    with pytest.raises(FeatureStoreError, match="there is no .*feast init"):
        read_repo_config(tmp_path)
    (tmp_path / "feature_repo").mkdir()
    write(tmp_path / "feature_repo", "project: a")
    with pytest.raises(FeatureStoreError, match="Did you mean .*feature_repo"):
        read_repo_config(tmp_path)
