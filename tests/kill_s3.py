"""Kill `materialize` at random moments while it writes to an object store, and count what it leaves.

    python -m tests.kill_s3 [KILLS] [SEED]

The store is a real server of the S3 protocol (moto). Every committed row must stay, and the run
after the last kill must complete what is missing. The last line is JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sda_features.feature_store.matrices import load_vectors
from sda_features.feature_store.repo import open_feature_set
from sda_features.offline.location import parquet_names
from sda_features.offline.parts import part_paths, stored_rows
from sda_features.serving.embedded import embedded_redis
from sda_features.workflows import given_vectors, materialize
from sda_features.workflows.given_vectors import VectorTable
from tests.feast_repo import applied_repo, config
from tests.s3_server import s3_server
from tests.workflows.stores import served

ITEMS, DIM = 4_000, 6
FILE_ROWS = 50  # small files, so that there are many commits
NEW_FILES = 3  # at most, before a run is killed
PATIENCE = 60.0  # seconds


def killed_run(repo: Path, table: VectorTable, ready: Event) -> None:
    """A run that writes many small files; it is killed from outside."""
    given_vectors.BATCH_ROWS, given_vectors.FILE_BYTES = FILE_ROWS, 1
    ready.set()
    materialize(repo, "sda", table, progress=False)


def kill_runs(repo: Path, table: VectorTable, kills: int, seed: int) -> Counter[str]:
    """Kill so many runs, complete the work, and count."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["feast", "tests.kill_s3"])
    chance, seen, before = random.Random(seed), Counter({"commits lost": 0}), 0
    folder = open_feature_set(repo, "sda").folder
    for _ in range(kills):
        ready = processes.Event()
        process = processes.Process(target=killed_run, args=(repo, table, ready))
        process.start()
        assert ready.wait(300)
        wanted, ends = len(parquet_names(folder)) + chance.randint(0, NEW_FILES), time.monotonic() + PATIENCE
        while process.is_alive() and len(parquet_names(folder)) < wanted and time.monotonic() < ends:
            time.sleep(0.01)
        process.join(chance.uniform(0, 0.5))
        process.kill()
        process.join()
        committed = len(stored_rows(folder))
        seen["killed" if process.exitcode == -9 else "ended before"] += 1
        seen["killed after a commit"] += int(committed > before)
        seen["commits lost"] += int(committed < before)
        before = committed
    done = materialize(repo, "sda", table, progress=False)
    seen["rows of killed runs"], seen["rows of the last run"] = done.unchanged, done.encoded
    seen["files without an entry"] = len(parquet_names(folder)) - len(part_paths(folder))
    rows = pq.read_table(table.path)
    ids, texts = rows["item_id"].to_pylist(), np.array(rows["text"].to_pylist(), np.float32)
    trained = load_vectors(repo, "sda", ids)
    for name, found in (("offline", trained), ("online", served(repo, "sda", ids))):
        seen[f"rows lost {name}"] = int((~found.text_found).sum())
        seen[f"rows wrong {name}"] = int((found.text != texts).any(axis=1).sum())
    return seen


def main(kills: int = 20, seed: int = 0) -> Counter[str]:
    """In a repo and with servers of its own."""
    with tempfile.TemporaryDirectory() as name, s3_server() as bucket, embedded_redis() as server:
        settings = {"feature_sets": ["sda"], "source_folder": f"{bucket}/kills"}
        repo = applied_repo(Path(name), config("kills", server), **settings)
        text, image = (
            pa.array([*matrix], pa.list_(pa.float32()))
            for matrix in np.random.default_rng(seed).random((2, ITEMS, DIM), np.float32)
        )
        ids = [f"i{row}" for row in range(ITEMS)]
        pq.write_table(pa.table({"item_id": ids, "text": text, "image": image}), repo / "given.parquet")
        given = VectorTable(repo / "given.parquet", "item_id", "text", "image", "v1")
        return kill_runs(repo, given, kills, seed)


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:]))))
