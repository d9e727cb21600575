from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sda_features.config import EvaluationSettings, RecommenderSettings
from sda_features.errors import SettingsError
from sda_features.evaluation.protocols import evaluate
from sda_features.recommenders.content import DECAY, RELATIVE_WEIGHTS, WithContent, choose_weight
from sda_features.recommenders.rank_again import rank_again
from sda_features.recommenders.registry import find_recommender
from sda_features.recommenders.representations import ItemVectors, prepare_vectors
from sda_features.recommenders.training import TrainResult, train
from tests.contracts.recommender import ITEMS, USERS, small_log

MODELS = ("sasrec", "bert4rec", "vbpr", "slmrec")
SETTINGS = RecommenderSettings(
    hidden_dim=8, heads=2, max_length=6, epochs=2, validate_every=1, batch_size=8, threads=1, device="cpu"
)
EVALUATION = EvaluationSettings(cutoff=3, negatives=5)


def vectors() -> dict[str, np.ndarray]:
    """Two modalities; code 4 lacks its text, code 9 both."""
    random = np.random.default_rng(0)
    found = {
        name: random.normal(20, 1, (ITEMS + 1, dim)).astype(np.float32)
        for name, dim in (("text", 6), ("image", 5))
    }
    for matrix in found.values():
        matrix[[0, 9]] = 0
    found["text"][4] = 0
    return found


def trained(model: str, **settings: object) -> TrainResult:
    return train(
        small_log(),
        SETTINGS.model_copy(update=settings),
        EVALUATION,
        vectors(),
        recommender=find_recommender(model),
        progress=False,
    )


def plain_content(history: list[int]) -> np.ndarray:
    """cos(m_u, v_i) of all items, from the formula, one item at a time."""

    def vector(item: int) -> np.ndarray:
        parts = []
        for matrix in vectors().values():
            rows = matrix.astype(np.float64)
            part = rows[item] - rows[rows.any(axis=1)].mean(axis=0) if rows[item].any() else 0 * rows[item]
            parts.append(part / max(np.linalg.norm(part), 1e-12))
        both = np.concatenate(parts)
        return both / max(np.linalg.norm(both), 1e-12)

    wanted = sum(DECAY**age * vector(item) for age, item in enumerate(reversed(history)))
    wanted = wanted / max(np.linalg.norm(wanted), 1e-12)
    return np.array([wanted @ vector(item) for item in range(ITEMS + 1)])


@pytest.mark.parametrize("model", MODELS)
def test_the_score_is_the_models_and_the_cosine(model: str) -> None:
    run = trained(model, content_weight=2.5)
    log, users = run.split.test.history, np.arange(USERS)
    assert run.content_weight == 2.5
    own, both = run.model.scorer(log)(users), run.ranker.scorer(log)(users)
    for user in users:
        history = log.recent(np.array([user]), SETTINGS.max_length)[0]
        expected = own[user] + 2.5 * plain_content([int(code) for code in history if code])
        np.testing.assert_allclose(both[user, 1:], expected[1:], atol=1e-5)
    histories = torch.from_numpy(log.recent(users, SETTINGS.max_length)).long()
    direct = run.ranker.score(torch.from_numpy(users), histories).detach().numpy()
    np.testing.assert_allclose(direct[:, 1:], both[:, 1:], atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_the_weight_is_the_best_of_those_tried_on_the_validation(model: str) -> None:
    run = trained(model, content_weight="auto")
    assert isinstance(run.item_vectors, ItemVectors)
    measure = f"ndcg@{EVALUATION.cutoff}/full/all"

    def validation(weight: float) -> float:
        ranker = WithContent(run.model, run.item_vectors, weight)
        score = ranker.scorer(run.split.validation.history)
        return evaluate(score, run.split, EVALUATION, holdout="validation").metrics()[measure]

    chosen = run.content_weight
    assert chosen == choose_weight(run.model, run.item_vectors, run.split, EVALUATION)
    unit = chosen / 4 if chosen else 0.1
    assert all(validation(chosen) >= validation(relative * unit) - 1e-9 for relative in (0, chosen / unit))
    assert (
        run.test.metrics()
        == evaluate(run.ranker.scorer(run.split.test.history), run.split, EVALUATION).metrics()
    )
    assert RELATIVE_WEIGHTS[0] == 0


def test_a_saved_run_ranks_with_another_weight(tmp_path: Path) -> None:
    run = trained("vbpr", content_weight=2.5)
    run.save(tmp_path / "run")
    for weight, ranker in ((0.0, run.model), (0.5, WithContent(run.model, run.item_vectors, 0.5))):
        found = rank_again(tmp_path / "run", small_log(), EVALUATION, content_weight=weight)
        expected = evaluate(ranker.scorer(run.split.test.history), run.split, EVALUATION).metrics()
        assert found.metrics() == expected != run.test.metrics()
    trained("vbpr").save(tmp_path / "without")
    with pytest.raises(SettingsError, match="has no content score"):
        rank_again(tmp_path / "without", small_log(), EVALUATION, content_weight=1.0)


def test_ids_alone_have_no_content() -> None:
    run = train(
        small_log(), SETTINGS.model_copy(update={"content_weight": "auto"}), EVALUATION, progress=False
    )
    assert run.content_weight == 0
    assert run.ranker is run.model


def test_content_that_tells_the_next_item_gets_a_weight() -> None:
    """Users walk along a circle of items, and neighbours on it have alike vectors."""
    from sda_features.logs.interactions import index_interactions

    rows = [(user, (user * 5 + place) % ITEMS) for user in range(USERS * 3) for place in range(6)]
    log = index_interactions(*zip(*rows, strict=True), catalogue=[str(item) for item in range(ITEMS)])
    angle = 2 * np.pi * np.arange(ITEMS) / ITEMS
    circle = np.zeros((ITEMS + 1, 2), np.float32)
    circle[1:] = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    settings = SETTINGS.model_copy(update={"content_weight": "auto", "epochs": 1})
    run = train(log, settings, EVALUATION, circle, progress=False)
    assert run.content_weight > 0
    alone = evaluate(run.model.scorer(run.split.test.history), run.split, EVALUATION).metrics()
    assert run.test.metrics()["ndcg@3/full/all"] > alone["ndcg@3/full/all"]
    assert prepare_vectors({"v": circle}, ITEMS).found[1:].all()
