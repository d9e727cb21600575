"""Compaction: the same newest rows before, between any two of its steps, and afterwards."""

import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import count
from pathlib import Path
from unittest.mock import DEFAULT, Mock, patch

import numpy as np
import pyarrow.dataset as pa_dataset
import pytest
from deltalake import DeltaTable

from sda_features.errors import FeatureStoreError
from sda_features.feature_store.matrices import load_vectors
from sda_features.feature_store.repo import quiet_feast
from sda_features.offline import compact as compact_module
from sda_features.offline.compact import compact
from sda_features.offline.parts import part_paths, stored_rows
from sda_features.offline.table import commit, read_table, row_files, sweep
from tests.feast_repo import NOON, Rows


def fill(folder: Path, runs: int = 6, items: int = 40, dim: int = 3) -> None:
    """So many runs that each rewrite a random half of the items."""
    rng = random.Random(0)
    ids = [f"i{number:03}" for number in range(items)]
    Rows.random(ids, dim).write(folder)
    for run in range(1, runs):
        chosen = sorted(rng.sample(ids, items // 2))
        Rows.random(chosen, dim, seed=run).write(folder, time=NOON + timedelta(hours=run))


def newest(folder: Path, paths: list[str] | None = None) -> dict[str, tuple]:
    """Item -> its newest row, by a slow plain reading of every row."""
    rows: dict[str, tuple] = {}
    for row in pa_dataset.dataset(paths or part_paths(folder)).to_table().to_pylist():
        found = (row["event_timestamp"], row["text_embedding"], row["image_embedding"], row["content_hash"])
        if row["item_id"] not in rows or found[0] > rows[row["item_id"]][0]:
            rows[row["item_id"]] = found
    return rows


def size(folder: Path) -> tuple[int, int]:
    """Files and rows."""
    files = row_files(folder)
    return len(files), sum(file.rows for file in files)


def test_nothing_is_done_without_need(tmp_path):
    compact(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    Rows.random(list("abcdefgh")).write(tmp_path)
    Rows.random(["a", "b"], seed=1).write(tmp_path, time=NOON + timedelta(hours=1))
    before = part_paths(tmp_path)
    compact(tmp_path)
    assert part_paths(tmp_path) == before  # a quarter is superseded, which is put up with
    Rows.random(["a"], seed=2).write(tmp_path, time=NOON + timedelta(hours=2))
    assert size(tmp_path) == (3, 11)
    compact(tmp_path)
    assert size(tmp_path) == (1, 8)


def test_many_parts_become_few(tmp_path, monkeypatch):
    monkeypatch.setattr(compact_module, "PART_ROWS", 16)
    monkeypatch.setattr("sda_features.offline.latest.BATCH_ROWS", 5)
    for number in range(40):
        Rows.random([f"{number}"], seed=number).write(tmp_path, time=NOON + timedelta(minutes=number))
    expected = newest(tmp_path)
    assert size(tmp_path) == (40, 40)
    compact(tmp_path)
    parts, rows = size(tmp_path)
    assert parts == len(part_paths(tmp_path)) <= 4
    assert rows == 40
    assert newest(tmp_path) == expected
    before = part_paths(tmp_path)
    compact(tmp_path)
    assert part_paths(tmp_path) == before


def test_removed_items_leave_and_nothing_else(tmp_path):
    fill(tmp_path)
    expected = newest(tmp_path)
    gone = ["i003", "i017", "never"]
    compact(tmp_path, remove=gone)
    assert newest(tmp_path) == {key: row for key, row in expected.items() if key not in gone}
    compact(tmp_path, remove=list(expected))
    assert part_paths(tmp_path) == []


def test_integer_ids(tmp_path):
    Rows.random(["7", "8"]).write(tmp_path, id_type="int64")
    compact(tmp_path, remove=[7])
    assert stored_rows(tmp_path)["item_id"].to_pylist() == [8]


@pytest.mark.parametrize("step", ["write_file", "commit", "keep_readable"])
def test_a_crash_before_any_step_leaves_the_newest_rows(tmp_path, monkeypatch, step):
    """Stop there, as a crash would; look at the log's rows and at the plain folder; go on with a new run."""
    monkeypatch.setattr(compact_module, "PART_ROWS", 16)
    fill(tmp_path)
    expected = newest(tmp_path)
    calls = [DEFAULT, ZeroDivisionError] if step == "write_file" else ZeroDivisionError
    crash = Mock(wraps=getattr(compact_module, step), side_effect=calls)
    with patch.object(compact_module, step, crash), pytest.raises(ZeroDivisionError):
        compact(tmp_path)
    plain = [str(path) for path in tmp_path.glob("*.parquet")]
    assert newest(tmp_path, plain) == newest(tmp_path) == expected
    sweep(tmp_path)
    compact(tmp_path)
    assert newest(tmp_path) == expected
    assert [str(path) for path in sorted(tmp_path.glob("*.parquet"))] == part_paths(tmp_path)
    assert pa_dataset.dataset(part_paths(tmp_path)).count_rows() <= 1.25 * len(expected)


def test_stock_feast_and_load_vectors_do_not_mind_equal_rows(make_repo):
    """What a crash between writing and deleting leaves: every newest row twice."""
    repo = make_repo()
    folder = repo / "data/sda"
    fill(folder)
    ids = sorted(newest(folder))
    before = load_vectors(repo, "sda", ids)
    old = {path: Path(path).read_bytes() for path in part_paths(folder)}
    compact(folder)
    for path, content in old.items():
        Path(path).write_bytes(content)
    rows = pa_dataset.dataset([str(path) for path in folder.glob("*.parquet")]).to_table(columns=["item_id"])
    assert len(rows) > 2 * len(ids)
    after = load_vectors(repo, "sda", ids)
    assert after.text.tobytes() == before.text.tobytes()
    assert after.image.tobytes() == before.image.tobytes()
    assert after.image_found.tolist() == before.image_found.tolist()
    with quiet_feast():
        import pandas as pd
        from feast import FeatureStore

        entities = pd.DataFrame({"item_id": ids, "event_timestamp": [NOON + timedelta(days=1)] * len(ids)})
        features = ["sda_item_embeddings:text_embedding"]
        history = FeatureStore(repo_path=str(repo)).get_historical_features(entities, features=features)
        found = history.to_df().sort_values("item_id")
    assert found["item_id"].tolist() == ids  # one row an item
    vectors = [vector for vector in found["text_embedding"] if vector is not None]
    assert np.array(vectors, np.float32).tobytes() == before.text[before.text_found].tobytes()


def test_readers_see_all_rows_while_parts_are_replaced(tmp_path):
    """A process compacts again and again; readers in threads never fail and never miss a row."""
    fill(tmp_path)
    expected = {key: row[0] for key, row in newest(tmp_path).items()}
    writer = """
import sys, time
from pathlib import Path
from sda_features.offline import compact
folder, ends = Path(sys.argv[1]), time.monotonic() + 2
turns = 0
while turns <= 5 or time.monotonic() < ends:
    compact.PART_ROWS = 7 + turns % 5
    compact.SUPERSEDED = -1  # always
    compact.compact(folder)
    turns += 1
"""
    command = [sys.executable, "-c", writer, str(tmp_path)]

    def read() -> int:
        reads = 0
        while process.poll() is None:
            rows = stored_rows(tmp_path).select(["item_id", "event_timestamp"])
            assert dict(zip(*rows.to_pydict().values(), strict=True)) == expected
            reads += 1
        return reads

    with subprocess.Popen(command) as process, ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
    assert min(reader.result() for reader in readers) > 0, "vacuous"


def test_parts_that_keep_vanishing_are_an_error(tmp_path):
    Rows.random(["a"]).write(tmp_path)
    minutes = count(1)

    def replace(dataset: pa_dataset.FileSystemDataset) -> None:
        Rows.random(["a"]).write(tmp_path, time=NOON + timedelta(minutes=next(minutes)))
        raise FileNotFoundError

    with pytest.raises(FeatureStoreError, match="were replaced 10 times"):
        read_table(tmp_path, replace)


def test_a_file_that_is_missing_for_another_reason_is_said_at_once(tmp_path):
    Rows.random(["a"]).write(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path, lambda dataset: Path("/nowhere/at/all").read_bytes())
    assert len(read_table(tmp_path, lambda dataset: dataset.to_table())) == 1


def test_two_writers_that_change_the_same_files_cannot_both_succeed(tmp_path):
    fill(tmp_path)
    files = row_files(tmp_path)
    expected = newest(tmp_path)
    compact(tmp_path)
    with pytest.raises(FeatureStoreError, match="Another run has changed"):
        commit(tmp_path, [], files)
    assert newest(tmp_path) == expected


def test_a_folder_of_an_earlier_release_is_taken_over(tmp_path):
    """Its parquet files become the first rows of a table, as they are."""
    Rows.random(["a", "b"]).write(tmp_path)
    shutil.rmtree(tmp_path / "_delta_log")
    old = part_paths(tmp_path)
    before = newest(tmp_path)
    assert DeltaTable.is_deltatable(str(tmp_path)) is False
    Rows.random(["c"]).write(tmp_path, time=NOON + timedelta(hours=1))
    assert set(old) < set(part_paths(tmp_path))
    assert {key: row for key, row in newest(tmp_path).items() if key != "c"} == before
    assert DeltaTable(str(tmp_path)).count() == 3
