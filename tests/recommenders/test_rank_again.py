import json
import shutil

import numpy as np
import pytest

from sda_features.config import EvaluationSettings, RecommenderSettings
from sda_features.errors import CheckpointError, SettingsError
from sda_features.evaluation.protocols import evaluate
from sda_features.logs.interactions import index_interactions
from sda_features.recommenders.rank_again import rank_again
from sda_features.recommenders.sasrec import SASRec
from sda_features.recommenders.training import train
from tests.contracts.recommender import ITEMS, small_log

SETTINGS = RecommenderSettings(hidden_dim=8, max_length=6, epochs=1, validate_every=1, threads=1)
TRAINED = EvaluationSettings(negatives=5, cutoff=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = train(small_log(), SETTINGS, TRAINED, recommender=SASRec, progress=False)
    result.save(folder)
    return folder, result


@pytest.mark.parametrize("changes", [{}, {"negatives": 7, "seed": 3}, {"cutoff": 5, "tail_below": 2}])
def test_a_saved_run_ranks_as_its_model_does(run, changes):
    folder, result = run
    settings = TRAINED.model_copy(update=changes)
    found = rank_again(folder, small_log(), settings)
    expected = evaluate(result.model.scorer(result.split.test.history), result.split, settings)
    assert found.metrics() == expected.metrics()
    for name, ranks in expected.ranks.items():
        np.testing.assert_array_equal(found.ranks[name], ranks)
    if not changes:
        assert found.metrics() == result.test.metrics()


def test_another_log_or_split_is_refused(run):
    with pytest.raises(SettingsError, match="was trained on another log"):
        rank_again(run[0], small_log(seed=1), TRAINED)
    log = small_log()
    other = index_interactions(log.users, log.items - 1, catalogue=range(ITEMS)[::-1])
    with pytest.raises(SettingsError, match="was trained on another log"):
        rank_again(run[0], other, TRAINED)
    with pytest.raises(SettingsError, match="was trained on the split leave-one-out"):
        rank_again(run[0], small_log(), TRAINED.model_copy(update={"split": "temporal"}))


def test_a_folder_that_lacks_its_factors_is_named(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    (folder / "users.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"not a complete run folder.*users\.safetensors"):
        rank_again(folder, small_log(), TRAINED)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"data": {}}))
    with pytest.raises(CheckpointError, match="not the manifest of a run"):
        rank_again(folder, small_log(), TRAINED)
