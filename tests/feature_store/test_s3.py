"""The offline rows at an s3:// URL: everything that works in a folder, against a real server of the protocol."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sda_features.config import EvaluationSettings, RecommenderSettings
from sda_features.demo.catalogue import make_catalogue
from sda_features.feature_store.lifecycle import list_versions, promote, prune, rollback
from sda_features.feature_store.matrices import load_vectors
from sda_features.feature_store.repo import open_feature_set
from sda_features.feature_store.versions import open_versions
from sda_features.offline.location import parquet_names
from sda_features.offline.parts import newest_batches, part_paths
from sda_features.offline.schema import vector_column
from sda_features.serving import EmbeddingClient
from sda_features.workflows import materialize, train_recommender, verify
from sda_features.workflows.given_vectors import VectorTable
from tests import kill_s3
from tests.s3_server import s3_server
from tests.shop import catalog, tiny_encoder

DIM = 6


@pytest.fixture(scope="module")
def bucket():
    with s3_server() as url:
        yield url


@pytest.fixture
def repo(tmp_path, bucket, new_repo, new_project):
    return new_repo(tmp_path, feature_sets=["sda"], source_folder=f"{bucket}/{new_project()}")


def vectors(path, rows, seed=0, version="v1", full=False):
    """A table of vectors: item i0, i1, ...; a vector is missing here and there, unless it is `full`."""
    rng = np.random.default_rng(seed)
    columns = {}
    for name in ("text", "image"):
        found = full | (np.arange(rows) % 7 != len(name))
        columns[name] = vector_column(rng.random((rows, DIM), np.float32), found)
    pq.write_table(pa.table({"item_id": [f"i{row}" for row in range(rows)], **columns}), path)
    return VectorTable(path, "item_id", "text", "image", version)


def run(repo, table, **options):
    return materialize(repo, "sda", table, progress=False, max_removed=0.5, **options)


def assert_stored(repo, table):
    """Trainers and readers get the vectors of a table, and of nothing else."""
    rows = pq.read_table(table.path)
    ids = rows["item_id"].to_pylist()
    found = load_vectors(repo, "sda", ids)
    with EmbeddingClient.from_repo(repo, "sda") as client:
        served = client.get(ids)
    for row, vector in enumerate(rows["text"].to_pylist()):
        assert (vector is not None) == found.text_found[row] == served.text_found[row]
        if vector is not None:
            expected = np.array(vector, np.float32).tobytes()
            assert found.text[row].tobytes() == served.text[row].tobytes() == expected


def test_a_life_at_a_url(repo, tmp_path):
    folder = open_feature_set(repo, "sda").folder
    assert str(folder).startswith("s3://")
    assert parquet_names(folder) == ["no-rows-yet.parquet"]
    first = vectors(tmp_path / "first.parquet", 40)
    done = run(repo, first)
    assert (done.encoded, done.unchanged, done.removed, done.live) == (40, 0, 0, "v1")
    assert_stored(repo, first)
    assert (run(repo, first).encoded, len(part_paths(folder))) == (0, 1)
    fewer = vectors(tmp_path / "fewer.parquet", 40)
    table = pq.read_table(fewer.path)
    texts = [[9.0] * DIM if row == 3 else vector for row, vector in enumerate(table["text"].to_pylist())]
    changed = table.set_column(1, "text", pa.array(texts, pa.list_(pa.float32())))
    pq.write_table(changed.slice(0, 38), fewer.path)
    done = run(repo, fewer)
    assert (done.encoded, done.unchanged, done.removed) == (1, 37, 2)
    assert_stored(repo, fewer)
    assert not load_vectors(repo, "sda", ["i39"]).text_found.any()
    second = vectors(tmp_path / "second.parquet", 30, seed=1, version="v2")
    assert run(repo, second).live == "v1"
    with open_versions(repo, "sda") as versions:
        promote(versions, "v2")
        assert_stored(repo, second)
        rollback(versions)
        assert_stored(repo, fewer)
        promote(versions, "v2")
        assert [state.version for state in prune(versions)] == ["v1"]
        assert [state.version for state in list_versions(versions)] == ["v2"]
    assert_stored(repo, second)
    assert parquet_names(folder) == ["no-rows-yet.parquet"]
    batches = newest_batches(open_feature_set(repo, "sda", 2).folder)
    assert sorted(pa.Table.from_batches(batches)["item_id"].to_pylist()) == sorted(
        f"i{row}" for row in range(30)
    )


def test_a_catalogue_is_verified_and_trained_on_from_a_url(repo, tmp_path):
    make_catalogue(30).write(tmp_path / "items.parquet")
    items = catalog(tmp_path / "items.parquet")
    done = materialize(repo, "sda", items, tiny_encoder(tmp_path / "model"), progress=False)
    found = verify(repo, "sda", items, progress=False)
    assert (found.items, found.vectors, found.online) == (30, 57, True)
    log = [
        {"user_id": f"u{user}", "item_id": f"item-{(3 * user + 7 * step) % 30:05}", "timestamp": step}
        for user in range(12)
        for step in range(6)
    ]
    pq.write_table(pa.Table.from_pylist(log), tmp_path / "log.parquet")
    settings = RecommenderSettings(hidden_dim=8, epochs=1, validate_every=1, threads=1)
    protocol = EvaluationSettings(negatives=5)
    trained = train_recommender(
        tmp_path / "log.parquet", "sda", settings, protocol, repo=repo, progress=False
    )
    assert trained.vectors_version == done.version


@pytest.mark.slow
def test_runs_that_are_killed_at_random_moments_lose_nothing(repo, tmp_path):
    """More kills: `python -m tests.kill_s3`."""
    table = vectors(tmp_path / "items.parquet", 500, seed=3, full=True)
    seen = kill_s3.kill_runs(repo, table, kills=3, seed=0)
    harm = {name: count for name, count in seen.items() if "lost" in name or "wrong" in name}
    assert len(harm) == 5
    assert not any(harm.values()), harm
    assert seen["rows of killed runs"] + seen["rows of the last run"] == 500
