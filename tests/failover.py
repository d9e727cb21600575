"""Servers that fail over, move slots and die while versions are written and promoted and eight readers read.

    python -m tests.failover [ROUNDS] [SEED] [SCENARIO ...]

Servers, Sentinel and clusters are real processes; a server dies by SIGKILL, at random moments. A run
that stops must say why, and the run after it must complete. Readers count what they see, as in
two_writers.py. Prints a table; the last line is JSON.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import redis
from redis.cluster import RedisCluster

from sda_features.errors import SDAError
from sda_features.feature_store.lifecycle import promote
from sda_features.feature_store.versions import open_versions
from sda_features.online import lease
from tests import two_writers
from tests.forks import fork, result
from tests.serving import servers
from tests.two_writers import check, make_repo, read, together, wrong_versions

READERS, PAUSE = 8, 0.02
FIRST, SECOND = "0" * 12, "1" * 12
MASTER = "vectors"
MOVED_SLOTS = 300  # of a migration


@dataclass
class Scene:
    """Running servers and an applied repo. `fail` returns when something has begun to fail, `heal` when all is back."""

    repo: Path
    chance: random.Random
    fail: Callable[[], None]
    heal: Callable[[], None]


def write(repo: Path, version: str) -> str:
    """As `two_writers.write`; a run that stops with a message says so."""
    try:
        return two_writers.write(repo, version)
    except SDAError as error:
        return f"stopped: {str(error)[:160]}"


def in_mid_write(scene: Scene) -> Counter[str]:
    """A new version is written and promoted while servers fail; a run that stopped is run again."""
    version = f"{scene.chance.randrange(16**12):012x}"
    writer = fork(lambda: write(scene.repo, version))
    result(fork(lambda: until_written(scene.repo, version)))
    time.sleep(scene.chance.uniform(0, 1))
    scene.fail()
    seen = Counter({f"run {result(writer)}": 1})
    scene.heal()
    seen[f"run after it {result(fork(lambda: write(scene.repo, version)))}"] += 1
    return seen + Counter(result(fork(lambda: check([scene.repo]))))


def until_written(repo: Path, version: str) -> bool:
    """Wait until a writer holds a slot for a version, or has completed it."""
    with open_versions(repo, "sda") as opened:
        while True:
            record = opened.record()
            if version in [*record.versions, *(writer.version for writer in record.writers.values())]:
                return True
            time.sleep(0.02)


def in_mid_promotion(scene: Scene) -> Counter[str]:
    """Two versions are promoted in turn while servers fail; the last promotion that was answered, again."""

    def promotions() -> Counter[str]:
        seen: Counter[str] = Counter()
        ends, goal = time.monotonic() + 8, FIRST
        while time.monotonic() < ends:
            goal = SECOND if goal == FIRST else FIRST
            try:
                with open_versions(scene.repo, "sda") as opened:
                    promote(opened, goal)
                seen["promotions answered"] += 1
            except SDAError:
                seen["promotions refused"] += 1
        return seen

    promoter = fork(promotions)
    time.sleep(scene.chance.uniform(0.3, 2))
    scene.fail()
    seen = result(promoter)
    scene.heal()

    def again() -> str:
        with open_versions(scene.repo, "sda") as opened:
            return str(promote(opened, SECOND).live)

    seen["promoted afterwards"] = int(result(fork(again)) == SECOND)
    return seen + Counter(result(fork(lambda: wrong_versions(scene.repo))))


# --- what fails ------------------------------------------------------------------------------------


@contextlib.contextmanager
def sentinel(folder: Path, chance: random.Random) -> Iterator[Scene]:
    """A master, its replica and a Sentinel; the master dies, and comes back as a replica."""
    with (
        servers.server(**{"repl-diskless-sync-delay": 0}) as one,
        servers.server(**{"repl-diskless-sync-delay": 0}) as two,
    ):
        with redis.Redis(servers.HOST, two) as replica:
            replica.execute_command("REPLICAOF", servers.HOST, one)
        with (
            servers.sentinel(folder, one, MASTER, down_after=500) as watcher,
            redis.Redis(servers.HOST, watcher, decode_responses=True) as sentinels,
        ):

            def master() -> int:
                return int(sentinels.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", MASTER)[1])

            def has_spare() -> bool:
                with contextlib.suppress(redis.RedisError), redis.Redis(servers.HOST, master()) as client:
                    known = sentinels.execute_command("SENTINEL REPLICAS", MASTER)
                    return servers.has_replica(client) and any("s_down" not in str(one) for one in known)
                return False

            dead: list[int] = []

            def fail() -> None:
                dead.append(master())
                servers.kill(dead[0])

            def heal() -> None:
                servers.wait_until(lambda: master() != dead[0])
                servers.restart(dead.pop())
                servers.wait_until(has_spare)

            servers.wait_until(has_spare)
            store = (
                f"{{type: redis, redis_type: redis_sentinel, sentinel_master: {MASTER}, "
                f"connection_string: '{servers.HOST}:{watcher}'}}"
            )
            yield Scene(make_repo(folder / "repo", config(store)), chance, fail, heal)


@contextlib.contextmanager
def cluster(folder: Path, chance: random.Random, *, moves: bool) -> Iterator[Scene]:
    """Three masters, which exchange slots (`moves`), or one of which dies and comes back as a replica."""
    with servers.cluster(replicated=not moves) as ports, RedisCluster(servers.HOST, ports[0]) as client:

        def masters() -> list[int]:
            client.nodes_manager.initialize()
            return [int(node.port) for node in client.get_primaries()]

        dead: list[int] = []

        def fail() -> None:
            if moves:
                slots = chance.sample(range(servers.SLOTS), MOVED_SLOTS)
                for slot in slots:
                    servers.move_slot(client, slot, chance.choice(masters()))
            else:
                dead.append(chance.choice(masters()))
                servers.kill(dead[0])

        def heal() -> None:
            if dead:
                with redis.Redis(servers.HOST, next(port for port in masters() if port not in dead)) as node:
                    servers.wait_until(lambda: has_failed(node, dead[0]) and servers.is_whole(node, 6))
                servers.restart(dead[0])
                with redis.Redis(servers.HOST, dead.pop()) as node:
                    servers.wait_until(lambda: servers.is_whole(node, 6))
                    servers.wait_until(lambda: node.info("replication").get("master_link_status") == "up")

        nodes = ",".join(f"{servers.HOST}:{port}" for port in ports)
        store = f"{{type: redis, redis_type: redis_cluster, connection_string: '{nodes}'}}"
        yield Scene(make_repo(folder / "repo", config(store)), chance, fail, heal)


def has_failed(node: redis.Redis, port: int) -> bool:
    """Whether a node of a cluster knows another to be gone."""
    known = node.execute_command("CLUSTER NODES")
    return any(f":{port}" in address and "fail" in one["flags"].split(",") for address, one in known.items())


def config(store: str) -> str:
    return (
        f"project: shop\nprovider: local\nregistry: data/registry.db\nonline_store: {store}\n"
        "entity_key_serialization_version: 3\n"
    )


SCENARIOS = {
    "sentinel-write": (sentinel, in_mid_write),
    "sentinel-promotion": (sentinel, in_mid_promotion),
    "cluster-slots-move": (partial(cluster, moves=True), in_mid_write),
    "cluster-node-lost": (partial(cluster, moves=False), in_mid_write),
    "cluster-node-lost-promotion": (partial(cluster, moves=False), in_mid_promotion),
}


def scenario(name: str, rounds: int, seed: int) -> Counter[str]:
    """All rounds of a scenario; what was counted."""
    servers_of, happens = SCENARIOS[name]
    lease.SECONDS = two_writers.LEASE
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, servers_of(Path(folder), random.Random(seed)) as scene:
        for version in (FIRST, SECOND)[: 1 + (happens is in_mid_promotion)]:
            assert result(fork(lambda version=version: write(scene.repo, version))) == "done"
        stop = Path(folder, "stop")
        readers = [fork(lambda: read(scene.repo, stop, PAUSE)) for _ in range(READERS)]
        try:
            for round_number in range(rounds):
                total += happens(scene)
                total["rounds"] += 1
                print(name, round_number, dict(total), file=sys.stderr, flush=True)
        finally:
            stop.touch()
            total += together(map(result, readers))
    return Counter({kind: total[kind] for kind in ("lost or mixed", "wrong numbers", "stored wrong", *total)})


def main(rounds: int = 10, seed: int = 0, *names: str) -> dict[str, Counter[str]]:
    """Run scenarios, by default all."""
    found = {}
    for name in names or SCENARIOS:
        found[name] = scenario(name, rounds, seed)
        print(name, json.dumps(found[name]), flush=True)
    return found


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:3]), *sys.argv[3:])))
