"""`materialize` again after 1% of the items have changed, against the run that encoded all of them.

One process, a real Feast repo and a real server; imports are done before. A run opens the catalogue
and the repo, loads the model, reads and hashes every row, encodes what changed, writes it offline and
online, and checks every item online. Vectors of changed items must be those of the encoder, and all
others the same bytes as before.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import importlib
import runpy
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import median, options, report

from sda_features.catalog.rows import Catalog
from sda_features.config import BackboneSettings, CatalogSettings, PromptSettings
from sda_features.demo.catalogue import make_catalogue
from sda_features.demo.model import build_tiny_model
from sda_features.feature_store.init import init_repo
from sda_features.feature_store.repo import quiet_feast
from sda_features.lvlm.checkpoint import LoadedEncoder, unadapted
from sda_features.lvlm.encode import encode_items
from sda_features.serving import EmbeddingClient
from sda_features.serving.embedded import embedded_redis
from sda_features.workflows import materialize

CHANGED = 0.01
CONFIG = """\
project: incremental
provider: local
registry: data/registry.db
online_store: {{type: redis, connection_string: '{}:{}'}}
entity_key_serialization_version: 3
"""
SLOW_IMPORTS = (
    "feast.infra.compute_engines.local.compute",
    "feast.infra.offline_stores.dask",
    "feast.infra.online_stores.redis",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
)


class Shop:
    """A generated catalogue, a generated model and an applied repo in `folder`."""

    def __init__(self, folder: Path, server: tuple[str, int], items: int, width: int) -> None:
        self.items_file, self.repo = folder / "items.parquet", folder / "repo"
        make_catalogue(items).write(self.items_file)
        self.ids = list(dict.fromkeys(filter(None, pq.read_table(self.items_file)["item_id"].to_pylist())))
        build_tiny_model(folder / "model", ["title is oak table"], hidden_size=width)
        self.backbone = BackboneSettings.parse(model=str(folder / "model"), quantization="none", device="cpu")
        self.settings = CatalogSettings.parse(path=self.items_file)
        self.load_seconds = 0.0
        self.repo.mkdir()
        (self.repo / "feature_store.yaml").write_text(CONFIG.format(*server))
        with quiet_feast():
            from feast import Entity, FeatureStore, FeatureView

            definitions = runpy.run_path(str(init_repo(self.repo, feature_sets=["sda"]).path)).values()
            objects = [value for value in definitions if isinstance(value, Entity | FeatureView)]
            FeatureStore(repo_path=str(self.repo)).apply(objects)
            for name in SLOW_IMPORTS:
                importlib.import_module(name)

    def load(self) -> LoadedEncoder:
        """The model without an adapter, timed."""
        started = time.perf_counter()
        loaded = unadapted(self.backbone, PromptSettings())
        self.load_seconds = time.perf_counter() - started
        return loaded

    def change(self, turn: int) -> list[str]:
        """Give every hundredth item a new title; return their ids."""
        table = pq.read_table(self.items_file)
        titles, ids = table["title"].to_pylist(), table["item_id"].to_pylist()
        rows = [
            row
            for row in range(turn, len(titles), round(1 / CHANGED))
            if ids[row] and ids.index(ids[row]) == row
        ]
        for row in rows:
            titles[row] = f"title {row} of turn {turn}"
        column = table.column_names.index("title")
        pq.write_table(table.set_column(column, "title", pa.array(titles)), self.items_file)
        return [ids[row] for row in rows]

    def run(self) -> tuple[float, Any]:
        """Materialise; return the seconds it took and its result."""
        started = time.perf_counter()
        result = materialize(self.repo, "sda", self.settings, self.load, progress=False)
        return time.perf_counter() - started, result

    def read(self) -> Any:
        """What the online store holds for all ids."""
        with EmbeddingClient.from_repo(self.repo, "sda") as client:
            return client.get(self.ids)

    def catalogue_seconds(self) -> float:
        """Time to read and hash the catalogue when every item is known."""
        catalog = Catalog(self.settings)
        known = {item.item_id: item.content_hash for item in catalog.items()}
        started = time.perf_counter()
        for _ in Catalog(self.settings).items(known):
            pass
        return time.perf_counter() - started


def check(shop: Shop, before: Any, after: Any, changed: list[str]) -> None:
    """Changed items have the encoder's vectors, the others the bytes they had."""
    rows = np.isin(shop.ids, changed)
    assert after.text[~rows].tobytes() == before.text[~rows].tobytes()
    assert after.image.tobytes() == before.image.tobytes() or rows.any()
    wanted = [item for item in Catalog(shop.settings).items() if item.item_id in set(changed)]
    (encoded,) = encode_items(shop.load(), wanted, shard_rows=len(wanted))
    place = {item_id: row for row, item_id in enumerate(shop.ids)}
    found = after.text[[place[item_id] for item_id in encoded.item_ids]]
    assert np.allclose(found, encoded.text, atol=1e-5), "vectors are not those of the encoder"
    assert not np.allclose(found, before.text[[place[item_id] for item_id in encoded.item_ids]], atol=1e-5)


def main() -> None:
    """Measure and print."""
    arguments = options(
        __doc__ or "",
        ("--items", {"type": int, "help": "default 5000"}),
        ("--width", {"type": int, "default": 128, "help": "of the generated model"}),
        ("--rounds", {"type": int, "default": 3}),
    )
    items = arguments.items or (1000 if arguments.quick else 5000)
    with tempfile.TemporaryDirectory() as name, embedded_redis() as server:
        shop = Shop(Path(name), server, items, arguments.width)
        full, first = shop.run()
        again, loads = [], []
        for turn in range(arguments.rounds):
            before, changed = shop.read(), shop.change(turn)
            seconds, result = shop.run()
            assert result.encoded == len(changed), f"encoded {result.encoded}, changed {len(changed)}"
            assert result.unchanged == first.encoded + first.unchanged - len(changed)
            again.append(seconds)
            loads.append(shop.load_seconds)
            check(shop, before, shop.read(), changed)
        nothing, _ = shop.run()
        catalogue = shop.catalogue_seconds()
    share = median(again) / full
    print(f"{'all ' + format(first.encoded, ',') + ' items':<34}{full:8.2f} s")
    print(f"{format(len(changed), ',') + ' changed':<34}{median(again):8.2f} s   {share:.1%} of it")
    print(f"{'  of which loading the model':<34}{median(loads):8.2f} s")
    print(f"{'  reading and hashing the catalogue':<34}{catalogue:8.2f} s")
    print(f"{'nothing changed':<34}{nothing:8.2f} s")
    report(
        "incremental",
        against="materialize of every item",
        ratio=full / median(again),
        share=round(share, 4),
        items=first.encoded,
        changed=len(changed),
        seconds={
            "full": round(full, 2),
            "again": [round(value, 2) for value in again],
            "nothing": round(nothing, 2),
        },
        model_load_seconds=round(median(loads), 2),
        catalogue_seconds=round(catalogue, 2),
    )


if __name__ == "__main__":
    main()
