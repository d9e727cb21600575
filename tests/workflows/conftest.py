"""A small log and vectors of its items, as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ITEMS, USERS = 40, 60
QUICK = ["--epochs", "1", "--validate-every", "1", "--hidden-dim", "8", "--heads", "2", "--threads", "1"]
QUICK += ["--eval-negatives", "5"]


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """log.parquet, and full.parquet, half.parquet: text and image vectors of 38 items.

    The first user has one interaction, the second two.
    """
    folder = tmp_path_factory.mktemp("tables")
    random = np.random.default_rng(0)
    lengths = [1, 2, *random.integers(3, 12, USERS - 2)]
    rows = [
        {
            "user_id": f"u{user:02}",
            "item_id": f"i{random.integers(ITEMS):02}",
            "timestamp": int(random.integers(1000)),
        }
        for user, length in enumerate(lengths)
        for _ in range(length)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "log.parquet")
    ids = [f"i{item:02}" for item in range(2, ITEMS)]
    for name, seed in {"full": 1, "half": 2}.items():
        vectors = np.random.default_rng(seed).normal(size=(2, len(ids), 6)).astype(np.float32)
        table = pa.table({"item_id": ids, "text": list(vectors[0]), "image": list(vectors[1])})
        pq.write_table(table, folder / f"{name}.parquet")
    return folder
