import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sda_features.config import EvaluationSettings, RecommenderSettings
from sda_features.errors import FeatureMismatchError, InteractionsError, SettingsError
from sda_features.evaluation.metrics import hit_at_k, ndcg_at_k
from sda_features.evaluation.protocols import evaluate, popularity_scorer
from sda_features.logs.interactions import index_interactions
from sda_features.recommenders.sasrec import SASRec
from sda_features.recommenders.training import train

KINDS, SIZE = 6, 12
SETTINGS = RecommenderSettings(
    hidden_dim=16,
    max_length=8,
    dropout=0.1,
    learning_rate=0.01,
    epochs=12,
    validate_every=3,
    batch_size=64,
    threads=1,
)
EVALUATION = EvaluationSettings(cutoff=5, negatives=20)


def planted(users=240, seed=0):
    """Each user walks through one kind of items in a fixed order from a random start."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        kind, start = random.integers(KINDS), random.integers(SIZE)
        rows += [(user, kind * SIZE + (start + step) % SIZE) for step in range(random.integers(5, 9))]
    return index_interactions(*zip(*rows, strict=True), catalogue=range(KINDS * SIZE))


def vectors_of_kinds():
    """Item vectors that know the kind and the place in the order, under a large common mean."""
    random = np.random.default_rng(1)
    kind, place = np.divmod(np.arange(KINDS * SIZE), SIZE)
    angle = 2 * np.pi * place / SIZE
    informative = np.column_stack([np.eye(KINDS)[kind], np.cos(angle), np.sin(angle)])
    vectors = informative @ random.normal(0, 1, (KINDS + 2, 32)) + 40
    return np.insert(vectors, 0, 0, axis=0).astype(np.float32)


@pytest.fixture(scope="module")
def trained():
    return train(planted(), SETTINGS, EVALUATION, progress=False)


def test_training_beats_popularity(trained):
    ours = trained.test.metrics()
    popular = evaluate(popularity_scorer(trained.split.train), trained.split, EVALUATION).metrics()
    for name in ("hit@5/full/all", "ndcg@5/full/all", "hit@5/sampled-20/all", "ndcg@5/sampled-20/all"):
        assert ours[name] > popular[name] + 0.3
    assert trained.epochs[-1].loss < 0.7 * trained.epochs[0].loss
    assert not trained.model.training


def test_the_best_weights_are_kept(trained):
    validated = {epoch.number: epoch.validation_ndcg for epoch in trained.epochs if epoch.number % 3 == 0}
    assert None not in validated.values()
    assert trained.best_epoch == max(validated, key=lambda number: validated[number])
    scorer = trained.model.scorer(trained.split.validation.history)
    again = evaluate(scorer, trained.split, EVALUATION, holdout="validation")
    assert again.metrics()["ndcg@5/full/all"] == pytest.approx(validated[trained.best_epoch], abs=1e-9)


def test_a_seed_repeats_a_run_and_leaves_torch_alone(trained):
    torch.manual_seed(7)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    short = SETTINGS.model_copy(update={"epochs": 2})
    seeds = [short.model_copy(update={"seed": seed}) for seed in (0, 0, 1)]
    results = [train(planted(), settings, EVALUATION, progress=False) for settings in seeds]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    losses = [[epoch.loss for epoch in result.epochs] for result in results]
    assert losses[0] == losses[1] != losses[2]
    assert losses[0] == [epoch.loss for epoch in trained.epochs[:2]]
    assert results[0].test.metrics() == results[1].test.metrics()


def test_training_stops_when_validation_no_longer_improves():
    still = SETTINGS.model_copy(update={"learning_rate": 1e-12, "validate_every": 1, "patience": 2})
    result = train(planted(users=30), still, EVALUATION, progress=False)
    assert len(result.epochs) == result.best_epoch + 2 < SETTINGS.epochs


@pytest.mark.parametrize(
    ("schedule", "expected"), [("constant", [0.01] * 4), ("linear", [0.01, 0.0075, 0.005, 0.0025])]
)
def test_the_schedule_sets_the_rate_of_each_epoch(schedule, expected, monkeypatch):
    rates = []

    class Recording(torch.optim.Adam):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "Adam", Recording)
    settings = SETTINGS.model_copy(update={"schedule": schedule, "epochs": 4})
    train(planted(users=30), settings, EVALUATION, progress=False)
    assert rates == pytest.approx(expected)  # 30 users are one step


@pytest.mark.parametrize("fusion", ["replace", "join"])
@pytest.mark.parametrize("loss", ["bce", "ce"])
def test_vectors_help_where_data_is_scarce(fusion, loss):
    """With a quarter of the users ids alone have seen too little; vectors carry over."""
    scarce = planted(users=60)
    settings = SETTINGS.model_copy(update={"fusion": fusion, "loss": loss})
    ids = train(scarce, settings, EVALUATION, progress=False).test.metrics()
    with_vectors = train(scarce, settings, EVALUATION, {"text": vectors_of_kinds()}, progress=False)
    assert with_vectors.test.metrics()["ndcg@5/full/all"] > ids["ndcg@5/full/all"] + 0.05
    assert with_vectors.vectors == {"text": {"dim": 32, "items": KINDS * SIZE}}


def test_a_run_folder_holds_everything(trained, tmp_path):
    trained.save(tmp_path / "run")
    files = {"items.parquet", "manifest.json", "model.safetensors", "ranks.npz", "users.safetensors"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == files
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert RecommenderSettings.parse(**manifest["settings"]) == SETTINGS
    assert EvaluationSettings.parse(**manifest["evaluation"]) == EVALUATION
    assert manifest["data"]["sha256"] == planted().data_hash
    assert manifest["metrics"] == trained.test.metrics()
    assert manifest["recommender"] == "SASRec"
    assert (manifest["best_epoch"], len(manifest["epochs"])) == (trained.best_epoch, len(trained.epochs))
    with np.load(tmp_path / "run" / "ranks.npz", allow_pickle=False) as arrays:
        tail = arrays["group/tail"]
        for protocol in ("full", "sampled-20"):
            ranks = arrays[f"rank/{protocol}"]
            assert hit_at_k(ranks, 5).mean() == manifest["metrics"][f"hit@5/{protocol}/all"]
            if tail.any():
                assert ndcg_at_k(ranks[tail], 5).mean() == manifest["metrics"][f"ndcg@5/{protocol}/tail"]
        ids = trained.split.interactions.item_ids
        assert arrays["item_ids"].tolist() == ids.take(trained.test.targets - 1).to_pylist()
        assert len(set(arrays["user_ids"].tolist())) == manifest["metrics"]["users/all"]
    again = SASRec(KINDS * SIZE, SETTINGS, None)
    again.load_state_dict(load_file(tmp_path / "run" / "model.safetensors"))
    history, users = trained.split.test.history, trained.test.users
    np.testing.assert_array_equal(again.scorer(history)(users), trained.model.scorer(history)(users))


def test_unusable_runs_raise():
    with pytest.raises(FeatureMismatchError, match=r"vectors: expected vectors \[73, D\]"):
        train(planted(), SETTINGS, EVALUATION, vectors_of_kinds()[1:], progress=False)
    with pytest.raises(InteractionsError, match="at least 3"):
        train(index_interactions(["a"], ["x"]), SETTINGS, EVALUATION, progress=False)
    wild = SETTINGS.model_copy(update={"learning_rate": 1e38})
    with pytest.raises(SettingsError, match=r"The loss is nan in epoch \d+. Lower learning_rate"):
        train(planted(users=30), wild, EVALUATION, progress=False)
