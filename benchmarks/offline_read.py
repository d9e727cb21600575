"""Vectors of a catalogue from Feast's offline store into tensors: trainers' `load_vectors` against stock Feast.

    python benchmarks/offline_read.py [--quick]

All read the same parquet parts into two float32 tensors [n, d] in the order of the ids. The floor
reads the parts with pyarrow and knows their order already.
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import median, options, paired_ratio, report, take_turns

from sda_features.feature_store.matrices import load_vectors
from sda_features.feature_store.repo import quiet_feast
from sda_features.offline.parts import write_part
from sda_features.offline.schema import vectors_table
from sda_features.serving.layout import IMAGE, TEXT, VERSION

DIM, PART_ROWS = 1024, 2_000
WRITTEN = datetime(2024, 5, 1, tzinfo=UTC)
STORES = {"stock": "file", "ours": "sda_features.feast_plugins.offline_store.VectorFileOfflineStore"}
Tensors = dict[str, torch.Tensor]


def write_repo(repo: Path, ids: list[str], matrices: dict[str, np.ndarray]) -> None:
    """A repo with one view, its parts, and a feature_store.yaml for each store."""
    from feast import FeatureStore

    from sda_features.feature_store.definitions import embedding_source, embedding_view, item_entity

    everywhere = np.ones(PART_ROWS, np.bool_)
    for start in range(0, len(ids), PART_ROWS):
        part = slice(start, start + PART_ROWS)
        table = vectors_table(
            ids[part],
            text=matrices[TEXT][part],
            text_found=everywhere,
            image=matrices[IMAGE][part],
            image_found=everywhere,
            adapter_version="0123456789ab",
            content_hashes=ids[part],
            event_timestamp=WRITTEN + timedelta(seconds=start),  # names of parts sort by time
        )
        write_part(repo / "data/sda", table)
    for name, kind in STORES.items():
        text = "project: bench\nprovider: local\nregistry: registry.db\nonline_store: {path: online.db}\n"
        (repo / f"{name}.yaml").write_text(f"{text}offline_store: {{type: {kind}}}\n")
    (repo / "feature_store.yaml").write_text((repo / "ours.yaml").read_text())
    item = item_entity()
    source = embedding_source("sda", "data/sda", item)
    FeatureStore(repo_path=str(repo)).apply([item, source, embedding_view("sda", source, item)])


class Readers:
    """The contenders; each gives the text and image tensors of `ids`."""

    def __init__(self, repo: Path, ids: list[str]) -> None:
        from feast import FeatureStore

        self.repo, self.ids = repo, ids
        self.stores = {
            name: FeatureStore(repo_path=str(repo), fs_yaml_file=repo / f"{name}.yaml") for name in STORES
        }
        self.entities = pd.DataFrame({"item_id": ids, "event_timestamp": WRITTEN + timedelta(days=1)})

    def floor(self) -> Tensors:
        """pyarrow alone."""
        table = pq.read_table(self.repo / "data/sda", columns=[TEXT, IMAGE])
        return {name: dense(table[name]) for name in (TEXT, IMAGE)}

    def load_vectors(self) -> Tensors:
        """What trainers call."""
        found = load_vectors(self.repo, "sda", self.ids)
        return {TEXT: torch.from_numpy(found.text), IMAGE: torch.from_numpy(found.image)}

    def stock_latest(self) -> Tensors:
        """As a user of stock Feast does it: rows to pandas, into the order of the ids, stacked."""
        from feast.infra.offline_stores.offline_utils import get_offline_store_from_config

        store = self.stores["stock"]
        source = store.get_data_source("sda_item_embeddings_source")
        job = get_offline_store_from_config(store.config.offline_store).pull_latest_from_table_or_query(
            config=store.config,
            data_source=source,
            join_key_columns=["item_id"],
            feature_name_columns=[TEXT, IMAGE, VERSION],
            timestamp_field=source.timestamp_field,
            created_timestamp_column=None,
            start_date=datetime(1970, 1, 1, tzinfo=UTC),
            end_date=datetime.now(UTC),
        )
        frame = job.to_arrow().to_pandas().set_index("item_id").loc[self.ids]
        return {name: torch.from_numpy(np.stack(frame[name])) for name in (TEXT, IMAGE)}

    def history(self, name: str) -> Tensors:
        """A point-in-time join under Feast's own API."""
        features = [f"sda_item_embeddings:{feature}" for feature in (TEXT, IMAGE)]
        job = self.stores[name].get_historical_features(self.entities, features)
        if name == "ours":  # rows come in the order of the entity frame, vectors in one buffer
            table = job.to_arrow()
            return {feature: dense(table[feature]) for feature in (TEXT, IMAGE)}
        frame = job.to_df().set_index("item_id").loc[self.ids]
        return {feature: torch.from_numpy(np.stack(frame[feature])) for feature in (TEXT, IMAGE)}


def dense(column: pa.ChunkedArray) -> torch.Tensor:
    """A list column without nulls as [n, d]."""
    blocks = [chunk.flatten().to_numpy() for chunk in column.chunks]
    return torch.from_numpy(np.concatenate(blocks).reshape(len(column), -1))


def main() -> None:
    arguments = options(__doc__.splitlines()[0])
    count = 4_000 if arguments.quick else 20_000
    random = np.random.default_rng(0)
    ids = [f"B{row:07d}" for row in range(count)]
    matrices = {name: random.standard_normal((count, DIM), np.float32) for name in (TEXT, IMAGE)}
    with tempfile.TemporaryDirectory() as folder, quiet_feast():
        write_repo(Path(folder), ids, matrices)
        readers = Readers(Path(folder), ids)
        contenders = {
            "pq.read_table (floor)": readers.floor,
            "load_vectors": readers.load_vectors,
            "get_historical_features, ours": lambda: readers.history("ours"),
            "pull_latest, stock": readers.stock_latest,
        }
        once = {"get_historical_features, stock": lambda: readers.history("stock")}
        for name, job in {**contenders, **(once if arguments.quick else {})}.items():
            for feature, tensor in job().items():
                assert tensor.numpy().tobytes() == matrices[feature].tobytes(), (name, feature)
        seconds = take_turns(contenders, rounds=5 if arguments.quick else 3)
        seconds |= take_turns(once, rounds=1, warmup=0)
    floor, ours, history, stock, stock_history = seconds.values()
    print(f"{count:,} items, 2 x {DIM} float32, {count // PART_ROWS} parts, into tensors")
    for name, times in seconds.items():
        print(f"{name:32} {median(times):8.3f} s {median(times) / median(floor):8.2f} x floor")
    report(
        "offline_read",
        against=f"feast {version('feast')} pull_latest, offline store file",
        ratio=paired_ratio(stock, ours),
        floor_ratio=paired_ratio(ours, floor),
        items=count,
        dim=DIM,
        historical_ratio=round(stock_history[0] / median(history), 2),
        historical_floor_ratio=round(paired_ratio(history, floor), 3),
    )


if __name__ == "__main__":
    main()
