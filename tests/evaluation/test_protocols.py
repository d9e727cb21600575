import os
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from sda_features.config import EvaluationSettings
from sda_features.errors import RankingError
from sda_features.evaluation import protocols
from sda_features.evaluation.protocols import evaluate, popularity_scorer, user_groups
from sda_features.logs.interactions import index_interactions, read_interactions
from sda_features.logs.splits import leave_one_out
from tests.reference import metrics as reference

ITEMS = 40
SETTINGS = EvaluationSettings(negatives=7, cutoff=5, tail_below=3)


def make_split(seed=0, users=50):
    """Users with 1 to 12 items, some of them taken twice; items 0..3 are never taken."""
    random = np.random.default_rng(seed)
    rows = [(u, random.integers(4, ITEMS)) for u in range(users) for _ in range(random.integers(1, 13))]
    return leave_one_out(index_interactions(*zip(*rows, strict=True), catalogue=range(ITEMS)))


def noisy_scorer(seed=0, levels=9):
    """Scores that depend on the user alone, with many ties."""

    def score(users):
        rows = [np.random.default_rng((seed, user)).integers(0, levels, ITEMS + 1) for user in users]
        return np.array(rows, dtype=np.float32)

    return score


def row(log, user):
    return log.items[log.offsets[user] : log.offsets[user + 1]].tolist()


@pytest.mark.parametrize("holdout", ["validation", "test"])
def test_full_ranking_matches_the_slow_twin(holdout):
    split, score = make_split(), noisy_scorer()
    result = evaluate(score, split, SETTINGS, holdout=holdout, protocols=("full",))
    held, place = (split.test, -1) if holdout == "test" else (split.validation, -2)
    own = [row(split.interactions, user) for user in held.users]
    assert held.targets.tolist() == [items[place] for items in own]
    assert any(len(set(items)) < len(items) for items in own)  # a repeated item is among them
    expected = [
        reference.full_rank(score([user])[0].tolist(), items[place], items[:place])
        for user, items in zip(held.users, own, strict=True)
    ]
    assert result.ranks["full"].tolist() == expected


def test_sampled_candidates_are_unseen_and_distinct(monkeypatch):
    split = make_split()
    spy = Mock(wraps=protocols.ranks_of_targets)
    monkeypatch.setattr(protocols, "ranks_of_targets", spy)

    def by_code(users):
        return np.tile(np.arange(ITEMS + 1, dtype=np.float32), (len(users), 1))

    evaluate(by_code, split, SETTINGS, protocols=("sampled",))
    codes = np.concatenate([call.args[0] for call in spy.call_args_list]).astype(int)
    assert codes.shape == (len(split.test.users), 8)
    for user, target, own in zip(split.test.users, split.test.targets, codes.tolist(), strict=True):
        assert own[0] == target
        assert len(set(own)) == 8
        assert not set(own[1:]) & {0, *row(split.interactions, user)}


def test_the_result_does_not_depend_on_the_batch_size():
    split = make_split()
    whole = evaluate(noisy_scorer(), split, SETTINGS)
    for size in (1, 7, 1000):
        parts = evaluate(noisy_scorer(), split, SETTINGS, batch_users=size)
        for protocol, ranks in whole.ranks.items():
            assert parts.ranks[protocol].tolist() == ranks.tolist()


def test_negatives_follow_their_seed_alone():
    split = make_split()
    seeds = [SETTINGS.model_copy(update={"seed": seed}) for seed in (0, 0, 1)]
    results = [evaluate(noisy_scorer(), split, settings).ranks["sampled-7"].tolist() for settings in seeds]
    assert results[0] == results[1] != results[2]


def test_an_oracle_a_constant_and_a_random_scorer():
    split = make_split(users=400)
    held = dict(zip(split.test.users.tolist(), split.test.targets.tolist(), strict=True))

    def oracle(users):
        return np.eye(ITEMS + 1, dtype=np.float32)[[held[user] for user in users.tolist()]]

    best = evaluate(oracle, split, SETTINGS).metrics()
    assert {best["hit@5/full/all"], best["ndcg@5/sampled-7/all"]} == {1.0}
    constant = evaluate(lambda users: np.zeros((len(users), ITEMS + 1), np.float32), split, SETTINGS)
    assert set(constant.ranks["sampled-7"]) == {4.5}
    candidates = [ITEMS - len(set(row(split.test.history, user)) - {held[user]}) for user in held]
    assert constant.ranks["full"].tolist() == [(count + 1) / 2 for count in candidates]
    random = evaluate(noisy_scorer(levels=10**6), split, SETTINGS).metrics()
    assert random["hit@5/sampled-7/all"] == pytest.approx(5 / 8, abs=0.08)


def test_groups_follow_training_popularity():
    # Training: "aa", "a" and "a"; test items c, a and d; nobody takes e.
    sequences = {"u": "aabc", "v": "aca", "w": "abd"}
    rows = [(user, item) for user, items in sequences.items() for item in items]
    split = leave_one_out(index_interactions(*zip(*rows, strict=True), catalogue=list("abcde")))
    assert split.train.item_counts.tolist() == [0, 4, 0, 0, 0, 0]
    groups = user_groups(split.test.targets, split.train, EvaluationSettings(tail_below=4))
    assert groups["all"].tolist() == [True, True, True]
    assert groups["tail"].tolist() == [True, False, True]
    # One fifth of 5 items is one item: of b, c, d, e with no interactions, b has the lowest code.
    assert groups["lowest-quintile"].tolist() == [False, False, False]
    groups = user_groups(np.array([2], dtype=np.int32), split.train, EvaluationSettings())
    assert groups["lowest-quintile"].tolist() == [True]


def test_metric_names_carry_the_variant_and_empty_groups_are_none():
    split = leave_one_out(index_interactions(["u"] * 3, ["a", "a", "a"], catalogue=["a", "b", "c"]))
    settings = EvaluationSettings(negatives=2, tail_below=1)
    values = evaluate(popularity_scorer(split.train), split, settings).metrics()
    assert values["hit@10/full/all"] == values["ndcg@10/sampled-2/all"] == 1.0
    assert (values["users/all"], values["users/tail"], values["users/lowest-quintile"]) == (1, 0, 0)
    assert values["hit@10/full/tail"] is None
    assert values["ndcg@10/sampled-2/lowest-quintile"] is None


def test_faulty_scorers_and_impossible_protocols_raise():
    split = make_split()
    with pytest.raises(RankingError, match=r"column 0 = padding.*got \[\d+, 40\]"):
        evaluate(lambda users: np.zeros((len(users), ITEMS), np.float32), split, SETTINGS)
    with pytest.raises(RankingError, match="NaN"):
        evaluate(lambda users: np.full((len(users), ITEMS + 1), np.nan, np.float32), split, SETTINGS)
    with pytest.raises(RankingError, match="Draw at most"):
        evaluate(noisy_scorer(), split, EvaluationSettings(negatives=100))


def test_popularity_counts_training_alone():
    split = make_split()
    scores = popularity_scorer(split.train)(np.array([3, 1]))
    assert scores.tolist() == [np.bincount(split.train.items, minlength=ITEMS + 1).tolist()] * 2


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "hit", "ndcg", "tail"), [("beauty", 0.2918, 0.1508, 3141), ("sports", 0.3064, 0.1675, 5402)]
)
def test_popularity_reaches_its_known_figures(name, hit, ndcg, tail):
    folder = os.environ.get("SDA_DATA_DIR")
    if not folder:
        pytest.skip("SDA_DATA_DIR is not set; it names the folder with beauty/ and sports/")
    split = leave_one_out(read_interactions(Path(folder) / name / "interactions.parquet"))
    # The published anchors use 99 negatives.
    values = evaluate(popularity_scorer(split.train), split, EvaluationSettings(negatives=99)).metrics()
    assert values["hit@10/sampled-99/all"] == pytest.approx(hit, abs=0.005)
    assert values["ndcg@10/sampled-99/all"] == pytest.approx(ndcg, abs=0.005)
    assert values["users/tail"] == tail
