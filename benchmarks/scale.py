"""How `materialize` scales with the items: time an item and peak memory, first run, no change, one in a hundred.

    python benchmarks/scale.py [--quick]

Vectors are given (`materialize --vectors`), so nothing is encoded: 2 x 64 float32 an item, into a
local Delta table and Redis. Each size has a server of its own, and each run a process of its own.
`growth` is processor time an item at the largest size over that at the smallest, and `memory_growth`
the peak memory of the largest over that of the size before it; `verify_memory_growth` is that of
`verify`, with the pages of the matrix file that it maps, 512 bytes an item; `--quick` leaves it out.
Wall time is printed beside.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import options, peak_memory

CATALOGUE = "catalogue.parquet"
RUNS = {
    "first": "first.parquet",
    "unchanged": "first.parquet",
    "one in a hundred": "changed.parquet",
    "verify": CATALOGUE,
}
DIM, BATCH = 64, 50_000
LOADED = ["sda_features.feature_store", "sda_features.workflows", "sda_features.feast_plugins.engine"]
SIZES, QUICK = (100_000, 300_000, 1_000_000), (20_000, 100_000)


def write_vectors(path: Path, items: int, changed: int = 0) -> None:
    """`items` rows of ids and two vectors; the first `changed` of each batch differ from those of another call."""
    vector = pa.list_(pa.float32())
    schema = pa.schema([("item_id", pa.string()), ("text", vector), ("image", vector)])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, items, BATCH):
            count = min(BATCH, items - start)
            numbers = np.random.default_rng(start).random((2, count, DIM), np.float32)
            numbers[:, : changed * count // items] += 1
            ids = pa.array([f"item-{row:09}" for row in range(start, start + count)])
            offsets = pa.array(np.arange(count + 1, dtype=np.int32) * DIM)
            columns = [pa.ListArray.from_arrays(offsets, matrix.reshape(-1)) for matrix in numbers]
            writer.write_table(pa.Table.from_arrays([ids, *columns], schema=schema))


def run(folder: Path, name: str) -> dict[str, float]:
    """One run in this process, and what it took."""
    from sda_features.config import CatalogSettings
    from sda_features.workflows import materialize, verify
    from sda_features.workflows.given_vectors import VectorTable

    wall, cpu = time.perf_counter(), time.process_time()
    if name == CATALOGUE:
        found = verify(folder, "sda", CatalogSettings.parse(path=folder / name), progress=False)
        items = found.items
    else:
        table = VectorTable(folder / name, "item_id", "text", "image", "v1")
        items = materialize(folder, "sda", table, progress=False).encoded
    return {
        "items": items,
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "peak_mib": peak_memory() / 2**20,
    }


def measure(items: int, runs: dict[str, str]) -> dict[str, dict[str, float]]:
    """The runs at one size."""
    from sda_features.feature_store.definitions import embedding_source, embedding_view, item_entity
    from sda_features.serving.embedded import embedded_redis

    from feast import FeatureStore  # isort: skip  (after our own, which loads it in half the time)

    with tempfile.TemporaryDirectory() as name, embedded_redis() as (host, port):
        folder = Path(name)
        (folder / "feature_store.yaml").write_text(
            f"project: scale\nprovider: local\nregistry: registry.db\nentity_key_serialization_version: 3\n"
            f"online_store: {{type: redis, connection_string: '{host}:{port}'}}\n"
        )
        item = item_entity()
        sources = [embedding_source("sda", f"sda_{slot}", item, slot=slot) for slot in (1, 2)]
        views = [embedding_view("sda", source, item, slot=slot) for slot, source in enumerate(sources, 1)]
        FeatureStore(repo_path=name).apply([item, *sources, *views])
        write_vectors(folder / "first.parquet", items)
        write_vectors(folder / "changed.parquet", items, items // 100)
        ids = pq.read_table(folder / "first.parquet", columns=["item_id"])
        pq.write_table(ids.append_column("title", ids["item_id"]), folder / CATALOGUE)
        return {run: measured(folder, table) for run, table in runs.items()}


def measured(folder: Path, table: str) -> dict[str, float]:
    """`run` in a process of its own, which has Feast loaded: that takes the same time at any size."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    with ProcessPoolExecutor(1, context) as process:
        return process.submit(run, folder, table).result()


def main() -> None:
    """Print a table, and the ratios as JSON on the last line."""
    arguments = options(__doc__ or "")
    sizes = QUICK if arguments.quick else SIZES
    runs = {run: table for run, table in RUNS.items() if run != "verify" or not arguments.quick}
    results = {}
    print(f"{'items':>9}  {'run':<16} {'wall s':>7} {'cpu s':>7} {'us an item':>10} {'peak MiB':>8}")
    for items in sizes:
        results[items] = measure(items, runs)
        for run, took in results[items].items():
            each = 1e6 * took["cpu"] / items
            print(
                f"{items:>9,}  {run:<16} {took['wall']:>7.1f} {took['cpu']:>7.1f} {each:>10.1f} "
                f"{took['peak_mib']:>8.0f}"
            )
    each = [results[items]["first"]["cpu"] / items for items in sizes]
    peaks = [
        max(took["peak_mib"] for run, took in results[items].items() if run != "verify") for items in sizes
    ]
    summary = {
        "growth": round(each[-1] / each[0], 3),
        "memory_growth": round(peaks[-1] / peaks[-2], 3),
        "sizes": {str(items): results[items] for items in sizes},
    }
    if "verify" in runs:
        verified = [results[items]["verify"]["peak_mib"] for items in sizes]
        summary["verify_memory_growth"] = round(verified[-1] / verified[-2], 3)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
