from pathlib import Path

import numpy as np
import pytest
import torch

from sda_features.config import EvaluationSettings, RecommenderSettings
from sda_features.errors import SettingsError
from sda_features.evaluation.protocols import evaluate
from sda_features.logs.interactions import index_interactions
from sda_features.recommenders.base import Recommender
from sda_features.recommenders.content import DECAY, RELATIVE_WEIGHTS, WithContent, choose_weight
from sda_features.recommenders.rank_again import rank_again
from sda_features.recommenders.registry import find_recommender
from sda_features.recommenders.representations import ItemVectors, prepare_vectors
from sda_features.recommenders.training import TrainResult, train
from tests.contracts.recommender import ITEMS, USERS, small_log
from tests.recommenders.conftest import raw_vectors

MODELS = ("sasrec", "bert4rec", "vbpr", "slmrec")
SETTINGS = RecommenderSettings(
    hidden_dim=8, heads=2, max_length=6, epochs=2, validate_every=1, batch_size=8, threads=1, device="cpu"
)
EVALUATION = EvaluationSettings(cutoff=3, negatives=5)


def trained(model: str, **settings: object) -> TrainResult:
    chosen = SETTINGS.model_copy(update=settings)
    recommender = find_recommender(model)
    return train(small_log(), chosen, EVALUATION, raw_vectors(), recommender=recommender, progress=False)


def ranked(run: TrainResult, ranker: Recommender | WithContent, holdout: str = "test") -> dict[str, float]:
    """Metrics of the held interactions."""
    score = ranker.scorer(getattr(run.split, holdout).history)
    return evaluate(score, run.split, EVALUATION, holdout=holdout).metrics()


def plain_content(history: list[int]) -> np.ndarray:
    """cos(m_u, v_i) of all items, from the formula, one item at a time."""

    def unit(vector: np.ndarray) -> np.ndarray:
        return vector / max(np.linalg.norm(vector), 1e-12)

    def vector(item: int) -> np.ndarray:
        parts = []
        for matrix in raw_vectors().values():
            rows = matrix.astype(np.float64)
            parts.append(unit(rows[item] - rows[rows.any(axis=1)].mean(axis=0) * rows[item].any()))
        return unit(np.concatenate(parts))

    wanted = unit(sum(DECAY**age * vector(item) for age, item in enumerate(reversed(history))))
    return np.array([wanted @ vector(item) for item in range(ITEMS + 1)])


@pytest.mark.parametrize("model", MODELS)
def test_the_score_is_the_models_and_the_cosine(model: str) -> None:
    run = trained(model, content_weight=2.5)
    log, users = run.split.test.history, np.arange(USERS)
    assert run.content_weight == 2.5
    own, both = run.model.scorer(log)(users), run.ranker.scorer(log)(users)
    histories = log.recent(users, SETTINGS.max_length)
    for user, history in enumerate(histories.tolist()):
        expected = own[user] + 2.5 * plain_content([code for code in history if code])
        np.testing.assert_allclose(both[user, 1:], expected[1:], atol=1e-5)
    direct = run.ranker.score(torch.from_numpy(users), torch.from_numpy(histories).long()).detach().numpy()
    np.testing.assert_allclose(direct[:, 1:], both[:, 1:], atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_the_weight_is_the_best_of_those_tried_on_the_validation(model: str) -> None:
    run = trained(model, content_weight="auto")
    assert isinstance(run.item_vectors, ItemVectors)
    measure = f"ndcg@{EVALUATION.cutoff}/full/all"

    def validation(weight: float) -> float:
        return ranked(run, WithContent(run.model, run.item_vectors, weight), "validation")[measure]

    chosen = run.content_weight
    assert chosen == choose_weight(run.model, run.item_vectors, run.split, EVALUATION)
    unit = chosen / 4 if chosen else 0.1
    assert all(validation(chosen) >= validation(relative * unit) - 1e-9 for relative in (0, chosen / unit))
    assert run.test.metrics() == ranked(run, run.ranker)
    assert RELATIVE_WEIGHTS[0] == 0


def test_a_saved_run_ranks_with_another_weight(tmp_path: Path) -> None:
    run = trained("vbpr", content_weight=2.5)
    run.save(tmp_path / "run")
    for weight, ranker in ((0.0, run.model), (0.5, WithContent(run.model, run.item_vectors, 0.5))):
        found = rank_again(tmp_path / "run", small_log(), EVALUATION, content_weight=weight)
        assert found.metrics() == ranked(run, ranker) != run.test.metrics()
    trained("vbpr").save(tmp_path / "without")
    with pytest.raises(SettingsError, match="has no content score"):
        rank_again(tmp_path / "without", small_log(), EVALUATION, content_weight=1.0)


def test_ids_alone_have_no_content() -> None:
    settings = SETTINGS.model_copy(update={"content_weight": "auto"})
    run = train(small_log(), settings, EVALUATION, progress=False)
    assert run.content_weight == 0
    assert run.ranker is run.model


def test_content_that_tells_the_next_item_gets_a_weight() -> None:
    """Users walk along a circle of items, and neighbours on it have alike vectors."""
    rows = [(user, (user * 5 + place) % ITEMS) for user in range(USERS * 3) for place in range(6)]
    log = index_interactions(*zip(*rows, strict=True), catalogue=[str(item) for item in range(ITEMS)])
    angle = 2 * np.pi * np.arange(ITEMS) / ITEMS
    circle = np.zeros((ITEMS + 1, 2), np.float32)
    circle[1:] = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    settings = SETTINGS.model_copy(update={"content_weight": "auto", "epochs": 1})
    run = train(log, settings, EVALUATION, circle, progress=False)
    assert run.content_weight > 0
    assert run.test.metrics()["ndcg@3/full/all"] > ranked(run, run.model)["ndcg@3/full/all"]
    assert prepare_vectors({"v": circle}, ITEMS).found[1:].all()
