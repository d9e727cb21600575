"""Two writers on one Redis, each with a folder of its own as two pods have, while readers read.

    python -m tests.two_writers [RUNS] [SEED]

In each run both write and promote: the same version or two, both at once, or one that is stopped
(SIGSTOP) at a random moment for longer than its lease while the other goes on. Readers count what
they see: a row that is missing or of another version than the others, other numbers than were
written, a request that fails. The last line is JSON.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sda_features.errors import FeatureStoreError
from sda_features.feature_store.lifecycle import prune
from sda_features.feature_store.to_online import materialize_view
from sda_features.feature_store.versions import open_versions, record_version, slot_for
from sda_features.offline.parts import stored_rows
from sda_features.online import lease
from sda_features.serving import EmbeddingClient
from sda_features.serving.embedded import embedded_redis
from tests.feast_repo import NOON, Rows, applied_repo, config
from tests.forks import FAILED, fork, result

IDS = [f"i{number:04}" for number in range(1500)]
READ = IDS[::5]
LEASE = 1.0  # seconds
READERS = 2
KINDS = ("two versions", "one version", "one stopped, two versions", "one stopped, one version")


def numbers(version: str) -> Rows:
    """What a version holds; a function of its name."""
    rng = np.random.default_rng(int(version, 16))
    there = np.ones(len(IDS), np.bool_)
    text, image = rng.normal(size=(2, len(IDS), 4)).astype(np.float32)
    return Rows(IDS, text, there, image, there)


def write(repo: Path, version: str) -> str:
    """Write a version as `materialize` does, and promote it; wait for a slot that another has."""
    ends = time.monotonic() + 60
    while True:
        try:
            with (
                open_versions(repo, "sda") as versions,
                slot_for(versions.slots, versions, version) as opened,
            ):
                if not len(stored_rows(opened.folder)):  # a run that stopped may have left them
                    numbers(version).write(opened.folder, version=version, time=NOON)
                materialize_view(repo, "sda", slot=opened.slot)
                record_version(versions, opened, version, promote=True)
                return "done"
        except lease.LeaseLost:
            return "stopped itself"
        except FeatureStoreError as error:
            if "Another run" not in str(error):
                raise
            if time.monotonic() > ends:
                return "gave up"
            time.sleep(0.05)


def read(repo: Path, stop: Path, pause: float = 0.002) -> Counter[str]:
    """Read until there is a file `stop`."""
    seen: Counter[str] = Counter()
    rows: dict[str, np.ndarray] = {}
    with EmbeddingClient.from_repo(repo, "sda") as client:
        good = time.monotonic()
        while not stop.exists():
            time.sleep(pause)
            seen["reads"] += 1
            try:
                found = client.get(READ)
            except Exception as error:
                seen[f"failed: {re.sub('[0-9]+', 'N', str(error))[:90]}"] += 1
                continue
            versions = set(found.versions)
            if len(versions) > 1 or not found.text_found.all():
                seen["lost or mixed"] += 1
                continue
            (version,) = versions
            rows.setdefault(str(version), numbers(str(version)).text[::5])
            seen["wrong numbers"] += int(not np.array_equal(found.text, rows[str(version)]))
            good, before = time.monotonic(), good
            seen["longest outage, ms"] = max(seen["longest outage, ms"], int(1e3 * (good - before)))
    seen["versions seen"] = len(rows)
    return seen


def together(readers: Iterable[Counter[str]]) -> Counter[str]:
    """What several readers saw: the longest outage, the sum of everything else."""
    total: Counter[str] = Counter()
    for seen in readers:
        longest = max(total["longest outage, ms"], seen["longest outage, ms"])
        total += seen
        total["longest outage, ms"] = longest
    return total


def wrong_versions(repo: Path) -> dict[str, int]:
    """Read every version that is recorded, and compare it with what was written."""
    wrong = 0
    with open_versions(repo, "sda") as opened, EmbeddingClient.from_repo(repo, "sda") as client:
        record = opened.record()
        for version in record.versions:
            found = client.get(IDS, version)
            wrong += not (np.array_equal(found.text, numbers(version).text) and found.text_found.all())
    return {"stored wrong": wrong, "versions checked": len(record.versions)}


def check(repos: list[Path]) -> dict[str, int]:
    """`wrong_versions` of repos on one Redis; then make room."""
    found = wrong_versions(repos[0]) | {"pruned": 0}
    for repo in repos:  # each has its own folders
        with open_versions(repo, "sda") as opened:
            found["pruned"] += len(prune(opened))
    return found


def make_repo(folder: Path, config: str) -> Path:
    """An applied repo of three slots."""
    return applied_repo(folder, config, feature_sets=["sda"], slots=3)


def one_run(repos: list[Path], kind: str, chance: random.Random) -> Counter[str]:
    """Two writers, then what is stored of all that is recorded."""
    names = [f"{chance.randrange(16**12):012x}" for _ in range(2)]
    versions = names if "two" in kind else names[:1] * 2
    writers = [
        fork(lambda repo=repo, name=name: write(repo, name))
        for repo, name in zip(repos, versions, strict=True)
    ]
    if "stopped" in kind:
        stopped = writers[0][0].pid
        time.sleep(chance.uniform(0.05, 0.9))
        os.kill(stopped, signal.SIGSTOP)
        time.sleep(chance.uniform(1.2, 2.5) * LEASE)
        os.kill(stopped, signal.SIGCONT)
    seen = Counter(f"writer {result(writer)}" for writer in writers)

    checked = result(fork(lambda: check(repos)))
    return seen + Counter({"check failed": 1} if checked == FAILED else checked)


def main(runs: int = 200, seed: int = 0) -> Counter[str]:
    """All runs; what was counted."""
    lease.SECONDS, chance = LEASE, random.Random(seed)
    total: Counter[str] = Counter()
    with embedded_redis() as server, tempfile.TemporaryDirectory() as folder:
        repos = [make_repo(Path(folder, name), config("shop", server)) for name in ("a", "b")]
        assert result(fork(lambda: write(repos[0], "0" * 12))) == "done"
        stop = Path(folder, "stop")
        readers = [fork(lambda: read(repos[0], stop)) for _ in range(READERS)]
        for run in range(runs):
            kind = KINDS[run % len(KINDS)]
            total += one_run(repos, kind, chance)
            total[f"runs: {kind}"] += 1
            print(run, kind, dict(total), file=sys.stderr, flush=True)
        stop.touch()
        total += together(map(result, readers))
    return Counter({name: total[name] for name in ("lost or mixed", "wrong numbers", "stored wrong", *total)})


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:]))))
