"""Kill `materialize` at random moments, really, and hold what it leaves against an undisturbed run.

Run as a program by test_materialize_faults.py; more kills: `python -m tests.kill_materialize --help`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pa_dataset
import pyarrow.parquet as pq

from sda_features.config import CatalogSettings
from sda_features.demo.catalogue import make_catalogue
from sda_features.feature_store.lifecycle import list_versions
from sda_features.feature_store.matrices import load_vectors
from sda_features.feature_store.repo import open_feature_set, quiet_feast
from sda_features.feature_store.versions import open_versions
from sda_features.offline import compact
from sda_features.offline.parts import part_paths, stored_rows
from sda_features.serving.embedded import embedded_redis
from sda_features.workflows import materialize
from tests.feast_repo import applied_repo, config
from tests.forks import FAILED, KILLED, fork, result
from tests.shop import tiny_encoder
from tests.workflows.stores import assert_alike, served, with_column

for name in (  # what a run imports on its way: once here, not in every fork
    "feast.infra.compute_engines.local.compute",
    "feast.infra.offline_stores.dask",
    "feast.infra.online_stores.redis",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "sda_features.lvlm.encode",
):
    with quiet_feast():
        importlib.import_module(name)

ITEMS, SHARD_ROWS = 150, 5


def prepare(folder: Path, server: tuple[str, int]) -> None:
    """Two catalogues (the second changes and drops items), a tiny model, and two applied repos."""
    make_catalogue(ITEMS).write(folder / "first.parquet")
    table = pq.read_table(folder / "first.parquet")
    titles = table["title"].to_pylist()
    titles[::10] = [f"changed {row}" for row in range(0, len(titles), 10)]
    kept = np.arange(len(titles)) % 25 != 3
    changed = with_column(table, "title", titles).filter(pa.array(kept))
    pq.write_table(changed, folder / "second.parquet")
    tiny_encoder(folder / "model")
    for name in ("calm", "killed"):
        applied_repo(folder / name, config(name, server), feature_sets=["sda"])


def run(folder: Path, repo: str, catalogue: str) -> list[int]:
    """Materialise; return how many items were encoded, unchanged and removed."""
    load = tiny_encoder(folder / "model")
    items = CatalogSettings.parse(path=folder / catalogue)
    done = materialize(folder / repo, "sda", items, load, shard_rows=SHARD_ROWS, progress=False)
    return [done.encoded, done.unchanged, done.removed]


def in_fork(job: Callable[[], Any], wait: Callable[[], None] | None = None) -> Any:
    """Result of `job`, run in a fork; `KILLED` if it still ran when `wait` returned."""
    forked = fork(job)
    if wait is not None:
        wait()
        forked[0].kill()
    found = result(forked)
    assert found != FAILED, "a run failed by itself"
    return found


def random_moment(folder: Path, seconds: float, chance: random.Random, new_parts: int | None) -> None:
    """Wait for up to `seconds`; with `new_parts` until a little after so many have been written."""
    delay, ends = chance.uniform(0, seconds), time.monotonic() + seconds
    if new_parts is not None:
        wanted = count_parts(folder) + new_parts
        while count_parts(folder) < wanted and time.monotonic() < ends:
            time.sleep(0.002)
        delay = chance.uniform(0, 0.05)
    time.sleep(delay)


def count_parts(folder: Path) -> int:
    """Parts of the killed repo."""
    return len(list((folder / "killed/data/item_embeddings/sda").glob("*.parquet")))


def written_rows(folder: Path) -> list[int]:
    """Parts, rows and distinct items of the killed repo."""
    paths = part_paths(open_feature_set(folder / "killed", "sda").folder)
    ids = pa_dataset.dataset(paths).to_table(columns=["item_id"])["item_id"]
    return [len(paths), len(ids), len(ids.unique())]


def differences(folder: Path) -> list[str]:
    """What differs between the two repos, offline and online."""
    ids = pq.read_table(folder / "first.parquet")["item_id"].drop_null().to_pylist()
    calm, killed = (contents(folder / name, ids) for name in ("calm", "killed"))
    found = [name for name in ("content hashes", "version records") if calm[name] != killed[name]]
    for place in ("offline", "online"):
        try:
            assert_alike(killed[place], calm[place])
        except AssertionError as error:
            found.append(f"{place}: {error}")
    if killed["offline"].text.tobytes() != killed["online"].text.tobytes():
        found.append("offline and online of the killed repo")
    return found


def contents(repo: Path, ids: list[str]) -> dict[str, Any]:
    """What a repo holds."""
    rows = stored_rows(open_feature_set(repo, "sda").folder)
    hashes = zip(rows["item_id"].to_pylist(), rows["content_hash"].to_pylist(), strict=True)
    with open_versions(repo, "sda") as versions:
        records = [(s.version, s.slot, s.state, s.items, s.dim) for s in list_versions(versions)]
    return {
        "content hashes": dict(hashes),
        "version records": records,
        "offline": load_vectors(repo, "sda", ids),
        "online": served(repo, "sda", ids),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder, chance = arguments.folder, random.Random(arguments.seed)
    folder.mkdir(parents=True, exist_ok=True)
    with embedded_redis() as server:
        in_fork(lambda: prepare(folder, server))
        result = {}
        for catalogue in ("first.parquet", "second.parquet"):
            started = time.monotonic()
            calm = in_fork(partial(run, folder, "calm", catalogue))
            seconds = time.monotonic() - started
            first = catalogue == "first.parquet"
            # Of the first catalogue every part is kept, to count them; then parts are compacted.
            compact.MANY_PARTS = 1000 if first else 3
            progress = []
            kills = turn = 0
            while kills < arguments.kills // 2:
                new_parts = chance.randrange(4) if first else None
                wait = partial(random_moment, folder, seconds, chance, new_parts)
                # The second time catalogues alternate, so that every run has rows to change and to remove.
                name = catalogue if first or turn % 2 == 0 else "first.parquet"
                kills += in_fork(partial(run, folder, "killed", name), wait) == KILLED
                turn += 1
                progress.append(count_parts(folder))
            last = in_fork(partial(run, folder, "killed", catalogue))
            result[catalogue] = {
                "seconds": round(seconds, 2),
                "calm": calm,
                "last": last,
                "kills": kills,
                "runs": turn,
                "parts_after_each": progress,
                **in_fork(lambda: {"written": written_rows(folder), "differences": differences(folder)}),
            }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
