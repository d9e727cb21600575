import json
import shutil
from typing import final

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from sda_features.config import EvaluationSettings, RecommenderSettings
from sda_features.errors import CheckpointError, FeatureMismatchError
from sda_features.recommenders.base import SequenceRecommender
from sda_features.recommenders.saved import load_run
from sda_features.recommenders.training import train
from tests.contracts.recommender import ITEMS, USERS, small_log
from tests.recommenders.conftest import NO_VECTOR, raw_vectors

SETTINGS = RecommenderSettings(
    hidden_dim=8, max_length=6, epochs=4, validate_every=2, learning_rate=0.05, threads=1, device="cpu"
)

KINDS = {
    "ids": {},
    "replace": {"fusion": "replace"},
    "join": {"fusion": "join"},
    "content": {"content_weight": 3.0},
    "whitened": {"fusion": "replace", "whiten": True, "content_weight": 3.0},
}


@pytest.fixture(scope="module", params=list(KINDS))
def run(request, tmp_path_factory):
    """A trained run, and the folder it was saved to."""
    trained = train(
        small_log(),
        SETTINGS.model_copy(update=KINDS[request.param]),
        EvaluationSettings(cutoff=3, negatives=5),
        None if request.param == "ids" else raw_vectors(),
        vectors_version="0123456789ab",
        progress=False,
    )
    folder = tmp_path_factory.mktemp("runs") / request.param
    trained.save(folder)
    return trained, folder


def rows_of(loaded, ids, vectors):
    return {name: matrix[loaded.codes(ids)] for name, matrix in vectors.items()}


def test_a_loaded_run_scores_as_the_trained_model(run):
    trained, folder = run
    loaded, log = load_run(folder), trained.split.interactions
    expected = trained.ranker.scorer(log)(np.arange(USERS))[:, 1:]
    assert np.ptp(expected, axis=1).min() > 0.01
    for user, codes in enumerate(np.split(log.items, log.offsets[1:-1])):
        history = [loaded.item_ids[code - 1] for code in codes]
        ids = [*history, *loaded.item_ids]
        for vectors in (None, rows_of(loaded, ids, raw_vectors())):
            found = loaded.score(history, loaded.item_ids, vectors)
            np.testing.assert_allclose(found.scores, expected[user], rtol=0, atol=2e-6)
            assert found.known.all()
            assert found.usable_history == min(len(history), SETTINGS.max_length)
            with_vector = len(ids) - ids.count(str(NO_VECTOR - 1)) if loaded.scalings else 0
            assert (found.fresh, found.stale) == ((with_vector, 0) if vectors else (0, with_vector))


def test_the_vectors_of_the_call_decide(run):
    loaded = load_run(run[1])
    history, candidates = ["2", "5"], ["3", "7", "11"]
    before = loaded.score(history, candidates).scores
    vectors = rows_of(loaded, history + candidates, raw_vectors(seed=1))
    after = loaded.score(history, candidates, vectors).scores
    assert np.array_equal(before, after) == (not loaded.scalings)


def test_an_item_without_a_vector_keeps_its_saved_representation(run):
    loaded = load_run(run[1])
    history, candidates = ["2", "5"], ["3", "7", "11"]
    vectors = rows_of(loaded, history + candidates, raw_vectors(seed=1))
    for matrix in vectors.values():
        matrix[[0, 1, 3]] = 0  # all but "3" and "11"
    found = loaded.score(history, candidates, vectors)
    assert found.stale == (3 if loaded.scalings else 0)
    saved = loaded.score(history, candidates)
    np.testing.assert_allclose(found.scores[1], saved.scores[1], atol=1e-6)
    assert np.allclose(found.scores[[0, 2]], saved.scores[[0, 2]], atol=1e-6) == (not loaded.scalings)


def test_an_item_that_came_after_the_training(run):
    trained, folder = run
    loaded, vectors = load_run(folder), raw_vectors()
    history, candidates = ["2"], ["3", "new", "newer"]
    rows = rows_of(loaded, history + candidates, vectors)
    for matrix in rows.values():
        matrix[2] = matrix[1]  # "new" is described like "3"
    found = loaded.score(history, candidates, rows)
    assert found.known.tolist() == [True, bool(loaded.scalings), False]
    if loaded.scalings:
        same = trained.settings.fusion == "replace"  # else the id embedding of "3" is missing
        assert np.isclose(found.scores[1], found.scores[0], atol=1e-6) == same
    assert loaded.score(history, candidates).known.tolist() == [True, False, False]


def test_histories_of_any_kind(run):
    loaded, candidates = load_run(run[1]), ["3", "7"]
    short = ["8", "2", "5", "6", "1", "0"]
    long = ["11", "12", *short]
    expected = loaded.score(short, candidates).scores
    np.testing.assert_array_equal(loaded.score(long, candidates).scores, expected)
    skipped = loaded.score(["new", *short[:3], "newer", *short[3:]], candidates)
    np.testing.assert_array_equal(skipped.scores, expected)
    assert skipped.usable_history == 6
    assert not np.allclose(loaded.score(short[:2], candidates).scores, skipped.scores)
    for history in ([], ["new"]):
        found = loaded.score(history, candidates)
        assert (found.scores.tolist(), found.usable_history) == ([0, 0], 0)
    assert loaded.score(short, []).scores.shape == (0,)


def test_what_a_run_knows_about_its_items(run):
    trained, folder = run
    loaded = load_run(folder)
    assert loaded.item_ids == tuple(str(item) for item in range(ITEMS))
    assert loaded.interactions.tolist() == trained.split.interactions.item_counts.tolist()
    expected = trained.item_vectors.found if trained.item_vectors else np.zeros(ITEMS + 1, bool)
    assert loaded.has_vector.tolist() == expected.tolist()
    assert torch.equal(loaded.table, trained.ranker.item_table())
    assert loaded.vectors_version == "0123456789ab"
    assert load_run(folder).version == loaded.version
    assert len(loaded.version) == 12
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_loading_leaves_the_random_numbers_alone(run):
    state = torch.get_rng_state()
    load_run(run[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_vectors_that_are_not_those_of_the_training(run):
    loaded = load_run(run[1])
    if not loaded.scalings:
        pytest.skip("a run on ids alone reads no vectors")
    rows = rows_of(loaded, ["2", "3"], raw_vectors())
    with pytest.raises(FeatureMismatchError, match="Expected vectors of text, image.*image did not come"):
        loaded.score(["2"], ["3"], {"text": rows["text"]})
    with pytest.raises(FeatureMismatchError, match=r"Expected item vectors \[n, 6\].*got \[2, 5\]"):
        loaded.score(["2"], ["3"], {"text": rows["image"], "image": rows["image"]})
    rows["text"][0, 0] = np.nan
    with pytest.raises(FeatureMismatchError, match="NaN or infinity"):
        loaded.score(["2"], ["3"], rows)


@final
class Other(SequenceRecommender):
    """A recommender that no package names."""


def copy_of(folder, target, **changes):
    shutil.copytree(folder, target)
    manifest = json.loads((target / "manifest.json").read_text())
    (target / "manifest.json").write_text(json.dumps(manifest | changes))
    return target


def test_folders_that_are_no_runs(run, tmp_path):
    with pytest.raises(CheckpointError, match=r"Expected a run folder with manifest\.json"):
        load_run(tmp_path)
    other = copy_of(run[1], tmp_path / "other", recommender="VBPR")
    ranks = "expected a recommender that ranks by a history of items"
    with pytest.raises(CheckpointError, match=f"holds a VBPR; {ranks}: SASRec, BERT4Rec or one of an inst"):
        load_run(other)
    with pytest.raises(CheckpointError, match=f"holds a VBPR; {ranks}: Other"):
        load_run(other, Other)
    unknown = copy_of(run[1], tmp_path / "unknown", recommender="Other")
    with pytest.raises(CheckpointError, match=f"holds a Other; {ranks}: SASRec"):
        load_run(unknown)


def test_damaged_folders(run, tmp_path):
    files = ["model.safetensors", "items.parquet", *(["scaling.safetensors"] if run[0].vectors else [])]
    for file in files:
        damaged = copy_of(run[1], tmp_path / file)
        (damaged / file).unlink()
        with pytest.raises(CheckpointError, match=f"not a complete run folder: .*{file}"):
            load_run(damaged)
    shifted = copy_of(run[1], tmp_path / "shifted", files={})  # as an earlier version wrote it
    load_run(shifted)
    pq.write_table(pq.read_table(shifted / "items.parquet").slice(1), shifted / "items.parquet")
    with pytest.raises(CheckpointError, match=f"has {ITEMS - 1} rows for {ITEMS} items"):
        load_run(shifted)
