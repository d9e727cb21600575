"""`sda-features stream`: items a second, and seconds from XADD to the first successful lookup.

    python benchmarks/stream.py [--quick]

The process that users run, in this machine's own server, beside a feature set that holds items
already. Texts of a tiny model (1 layer, 64 numbers), so that what is timed is the way through both
stores, not an encoder. New items come one at a time at random moments, then many at once; a
reader asks for each until it is there.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import redis
from common import median, options, percentile
from scale import write_vectors

from sda_features.config import BackboneSettings, CatalogSettings, PromptSettings
from sda_features.demo.catalogue import make_catalogue
from sda_features.demo.model import build_tiny_model
from sda_features.feature_store.definitions import embedding_source, embedding_view, item_entity
from sda_features.feature_store.repo import quiet_feast
from sda_features.lvlm.checkpoint import unadapted
from sda_features.serving import EmbeddingClient
from sda_features.serving.embedded import embedded_redis
from sda_features.workflows import materialize
from sda_features.workflows.given_vectors import VectorTable

POLL, PAUSE = 0.002, 1.5  # seconds
PATIENCE = 300.0


def fill(folder: Path, server: tuple[str, int], items: int) -> None:
    """A repo whose feature set holds `items` vectors of the version of a tiny model."""
    from feast import FeatureStore

    (folder / "feature_store.yaml").write_text(
        "project: stream\nprovider: local\nregistry: registry.db\nentity_key_serialization_version: 3\n"
        f"online_store: {{type: redis, connection_string: '{server[0]}:{server[1]}'}}\n"
    )
    item = item_entity()
    sources = [embedding_source("sda", f"sda_{slot}", item, slot=slot) for slot in (1, 2)]
    views = [embedding_view("sda", source, item, slot=slot) for slot, source in enumerate(sources, 1)]
    with quiet_feast():
        FeatureStore(repo_path=str(folder)).apply([item, *sources, *views])
    make_catalogue(10, spoil=False).write(folder / "items.parquet")
    build_tiny_model(folder / "model", ["title is oak"], hidden_size=64, layers=1, vision_layers=1)
    backbone = BackboneSettings.parse(model=str(folder / "model"), quantization="none", device="cpu")
    catalogue = CatalogSettings.parse(path=folder / "items.parquet")
    load = partial(unadapted, backbone, PromptSettings())
    version = materialize(folder, "sda", catalogue, load, progress=False).version
    write_vectors(folder / "given.parquet", items)
    given = VectorTable(folder / "given.parquet", "item_id", "text", "image", version)
    materialize(folder, "sda", given, max_removed=1.0, progress=False)


@contextlib.contextmanager
def streaming(folder: Path) -> Iterator[None]:
    """`sda-features stream` in a process of its own; when it reads, the block begins."""
    command = [Path(sys.executable).with_name("sda-features"), "stream", "events", "--repo", folder, "--json"]
    options = ["--model", folder / "model", "--quantization", "none", "--device", "cpu"]
    with subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


def measure(items: int, events: int, burst: int) -> dict[str, float]:
    """Figures beside so many stored items."""
    chance = random.Random(items)
    with tempfile.TemporaryDirectory() as name, embedded_redis() as address, redis.Redis(*address) as server:
        folder = Path(name)
        fill(folder, address, items)
        with streaming(folder), EmbeddingClient.from_repo(folder, "sda") as client:

            def add(item_id: str) -> float:
                server.xadd("events", {"item": json.dumps({"item_id": item_id, "title": f"table {item_id}"})})
                return time.monotonic()

            def until_found(item_id: str, added: float) -> float:
                while not client.get([item_id]).text_found.all():
                    assert time.monotonic() - added < PATIENCE, item_id
                    time.sleep(POLL)
                return time.monotonic() - added

            until_found("first", add("first"))  # the process has started
            seconds = []
            for event in range(events):
                time.sleep(chance.uniform(0, PAUSE))
                seconds.append(until_found(f"new-{event}", add(f"new-{event}")))
            began = time.monotonic()
            for event in range(burst):
                add(f"many-{event}")
            until_found(f"many-{burst - 1}", began)
            took = time.monotonic() - began
            ids = [f"many-{event}" for event in range(burst)]
            assert client.get(ids).text_found.all()
    return {
        "p50_s": round(median(seconds), 3),
        "p99_s": round(percentile(seconds, 0.99), 3),
        "items_per_s": round(burst / took, 1),
    }


def main() -> None:
    quick = options(__doc__ or "").quick
    sizes, events, burst = ((1_000,), 8, 300) if quick else ((1_000, 100_000, 300_000), 60, 3_000)
    results = {}
    for items in sizes:
        results[str(items)] = measure(items, events, burst)
        print(f"{items:>9,} stored items: {results[str(items)]}", flush=True)
    print(json.dumps({"name": "stream", "events": events, "burst": burst, "stored": results}))


if __name__ == "__main__":
    main()
