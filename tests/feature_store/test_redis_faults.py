"""What a full, read-only, forbidding or stalled Redis does to a run, and to the run after it."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from sda_features.errors import FeatureStoreError, OnlineStoreError
from sda_features.feast_plugins import engine
from sda_features.feast_plugins import online_store as online
from sda_features.feature_store import online_rows
from sda_features.feature_store.capacity import check_space
from sda_features.feature_store.repo import open_feature_set
from sda_features.feature_store.status import status
from sda_features.feature_store.to_online import materialize_view
from sda_features.feature_store.versions import open_versions, record_version, slot_for
from sda_features.offline.parts import stored_rows
from sda_features.online import lease
from tests.feast_repo import Rows
from tests.serving import servers

IDS = [f"i{number:04}" for number in range(3000)]
ROWS = Rows.random(IDS, 64)
VERSION = "aaaa00000001"


def store(repo: Path) -> None:
    with open_versions(repo, "sda") as versions, slot_for(versions.slots, versions, VERSION) as opened:
        if not len(stored_rows(opened.folder)):
            ROWS.write(opened.folder, version=VERSION)
        materialize_view(repo, "sda", slot=opened.slot)
        record_version(versions, opened, VERSION, promote=True)


def full(admin: redis.Redis) -> None:
    admin.config_set("maxmemory", admin.info("memory")["used_memory"] + 300_000)


def replica(admin: redis.Redis) -> None:
    admin.execute_command("REPLICAOF", servers.HOST, 1)


def forbid(admin: redis.Redis) -> None:
    admin.acl_setuser("default", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-hset"])


@pytest.mark.parametrize(
    ("fault", "message", "mend"),
    [
        (full, "its memory is full.*raise maxmemory", "CONFIG SET maxmemory 0"),
        (replica, "it is a replica.*address of the master", "REPLICAOF NO ONE"),
        (forbid, "the user lacks rights.*HSET", "ACL SETUSER default +@all"),
    ],
)
def test_a_redis_that_refuses_writes_says_why_and_the_next_run_goes_on(make_repo, fault, message, mend):
    with servers.server() as port, redis.Redis(servers.HOST, port) as admin:
        repo = make_repo(server=(servers.HOST, port), slots=2)
        fault(admin)
        with pytest.raises(OnlineStoreError, match=f"(?s){message}"):
            store(repo)
        admin.execute_command(*mend.split())
        store(repo)
        ROWS.assert_served(repo)


def test_a_redis_that_stalls_in_mid_write(make_repo, monkeypatch):
    """A stopped server answers nothing: the run ends in time, and the next one goes on."""
    for module in (lease, engine, online_rows):
        monkeypatch.setattr(module, "TIMEOUT", 0.5)
        monkeypatch.setattr(module, "RETRIES", 1)
    with servers.server() as port, redis.Redis(servers.HOST, port) as admin:
        repo = make_repo(server=(servers.HOST, port), slots=2)
        process = admin.info("server")["process_id"]
        real, stopped = lease.Lease.check, []

        def stall(held, **options):
            real(held, **options)
            if not stopped and admin.dbsize() > 500:  # in mid-write
                stopped.append(process)
                os.kill(process, signal.SIGSTOP)

        try:
            with monkeypatch.context() as patch:
                patch.setattr(lease.Lease, "check", stall)
                with pytest.raises(OnlineStoreError, match="did not answer in time"):
                    store(repo)
        finally:
            os.kill(process, signal.SIGCONT)
        assert 0 < admin.dbsize() < len(IDS)
        store(repo)
        ROWS.assert_served(repo)


@pytest.mark.parametrize(("given", "limit", "most"), [("", 0.6, 10), (",socket_timeout=0.2", 0.2, 5)])
def test_a_read_through_feasts_client_ends_when_the_server_hangs(monkeypatch, given, limit, most):
    monkeypatch.setattr(online, "TIMEOUT", 0.6)
    with servers.server() as port, redis.Redis(servers.HOST, port) as admin:
        process = admin.info("server")["process_id"]
        config = online.VectorRedisOnlineStoreConfig(connection_string=f"{servers.HOST}:{port}{given}")
        client = online.VectorRedisOnlineStore()._get_client(config)
        client.set_retry(Retry(NoBackoff(), 0))
        assert client.ping()
        os.kill(process, signal.SIGSTOP)
        started = time.monotonic()
        try:
            with pytest.raises(redis.TimeoutError):
                client.get("key")
        finally:
            os.kill(process, signal.SIGCONT)
        assert time.monotonic() - started < most
        assert client.connection_pool.connection_kwargs["socket_timeout"] == limit
        client.close()
        other = asyncio.run(online.VectorRedisOnlineStore()._get_client_async(config))
        assert other.connection_pool.connection_kwargs["socket_timeout"] == limit


def test_space_is_compared_with_what_rows_need(make_repo):
    with servers.server() as port, redis.Redis(servers.HOST, port) as admin:
        repo = make_repo(server=(servers.HOST, port), slots=2)
        opened = open_feature_set(repo, "sda")
        ROWS.write(opened.folder, version=VERSION)
        sample = stored_rows(opened.folder)
        row = sample.nbytes // len(sample)
        check_space(opened, 10**6, row)  # no limit
        with pytest.raises(
            FeatureStoreError,
            match=r"room for 1,000,000,000,000 rows in .*/sda, .* disk has [\d,]+ bytes left",
        ):
            check_space(opened, 10**12, row)
        admin.config_set("maxmemory", admin.info("memory")["used_memory"] + 5_000_000)
        admin.config_set("maxmemory-policy", "allkeys-lru")
        check_space(opened, 1000, row)
        with pytest.raises(
            OnlineStoreError,
            match=r"room for 100,000 rows .* it has [\d,]+ of [\d,]+ bytes left \(maxmemory, policy allkeys-lru\)",
        ):
            check_space(opened, 100_000, row)
        with open_versions(repo, "sda") as versions:
            assert any("set maxmemory-policy noeviction" in problem for problem in status(versions).problems)
