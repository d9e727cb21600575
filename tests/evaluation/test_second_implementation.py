"""Hit and NDCG held against ir_measures (trec_eval), on random runs with ties.

trec_eval orders equal scores by document id, here the other way round than the alphabet. So the id
of the target places it anywhere among its ties: first, last, or in the middle.
"""

import ir_measures
import numpy as np
import pytest
from ir_measures import Success, nDCG

from sda_features.evaluation.metrics import hit_at_k, ndcg_at_k, ranks_of_targets

RUNS, CANDIDATES, K = 300, 40, 10


def second(scores, targets, before):
    """Hit@K and NDCG@K of ir_measures, float64 [RUNS] each.

    Of the candidates that tie with the target, `before` (a function of their number) are put before it.
    """
    relevant, run = {}, {}
    for number, (row, target) in enumerate(zip(scores, targets, strict=True)):
        ties = [c for c in np.flatnonzero(row == row[target]) if c != target]
        first = set(ties[: before(len(ties))])
        names = {c: f"{'c' if c in first else 'b' if c == target else 'a'}{c}" for c in range(CANDIDATES)}
        relevant[str(number)] = {names[target]: 1}
        run[str(number)] = {names[c]: float(score) for c, score in enumerate(row)}
    found = {Success @ K: np.zeros(RUNS), nDCG @ K: np.zeros(RUNS)}
    for value in ir_measures.iter_calc(list(found), relevant, run):
        found[value.measure][int(value.query_id)] = value.value
    return found[Success @ K], found[nDCG @ K]


def test_runs_without_ties_agree():
    random = np.random.default_rng(0)
    scores = random.permuted(np.tile(np.arange(CANDIDATES, dtype=np.float32), (RUNS, 1)), axis=1)
    targets = random.integers(0, CANDIDATES, RUNS)
    ranks = ranks_of_targets(scores, targets)
    hit, ndcg = second(scores, targets, lambda ties: 0)
    assert 0 < hit.mean() < 1
    np.testing.assert_array_equal(hit_at_k(ranks, K), hit)
    np.testing.assert_allclose(ndcg_at_k(ranks, K), ndcg, rtol=1e-6)


@pytest.mark.parametrize("levels", [2, 5, 12, 40])
def test_ties_stand_in_their_middle(levels):
    random = np.random.default_rng(0)
    scores = random.integers(0, levels, (RUNS, CANDIDATES)).astype(np.float32)
    targets = random.integers(0, CANDIDATES, RUNS)
    ranks = ranks_of_targets(scores, targets)
    hit, ndcg = second(scores, targets, lambda ties: ties // 2)
    whole = ranks % 1 == 0
    assert 0 < whole.mean() < 1
    np.testing.assert_array_equal(hit_at_k(ranks, K)[whole], hit[whole])
    np.testing.assert_allclose(ndcg_at_k(ranks, K)[whole], ndcg[whole], rtol=1e-6)
    # Half a rank lies between two places.
    after = second(scores, targets, lambda ties: (ties + 1) // 2)
    for low, ours, high in zip(after, (hit_at_k(ranks, K), ndcg_at_k(ranks, K)), (hit, ndcg), strict=True):
        assert (low <= ours + 1e-6).all()
        assert (ours <= high + 1e-6).all()


def test_a_constant_scorer_is_neither_first_nor_last():
    scores, targets = np.zeros((RUNS, CANDIDATES), np.float32), np.zeros(RUNS, np.int64)
    (best, _), (worst, _) = second(scores, targets, lambda _: 0), second(scores, targets, lambda ties: ties)
    assert (best.mean(), worst.mean()) == (1, 0)
    ranks = ranks_of_targets(scores, targets)
    assert hit_at_k(ranks, K).mean() == 0
    assert hit_at_k(ranks, CANDIDATES // 2).mean() == 1
