import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from sda_features.errors import RankingError
from sda_features.evaluation.metrics import hit_at_k, mean, ndcg_at_k, ranks_of_targets
from tests.reference import metrics as reference

# Few distinct values, so that ties are common.
VALUES = st.sampled_from([-np.inf, -2.0, -1.0, 0.0, 1.0, 2.0, np.inf])


@given(st.data())
def test_ranks_match_the_slow_twin(data):
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 30)))
    scores = data.draw(st_np.arrays(np.float32, shape, elements=VALUES))
    targets = data.draw(st_np.arrays(np.int64, shape[0], elements=st.integers(0, shape[1] - 1)))
    scores[np.arange(shape[0]), targets] = np.clip(scores[np.arange(shape[0]), targets], -3, 3)
    ranks = ranks_of_targets(scores, targets)
    assert ranks.dtype == np.float64
    assert ranks.tolist() == list(map(reference.rank_of_target, scores, targets))
    for k in (1, 2, 10):
        assert hit_at_k(ranks, k).tolist() == [reference.hit(rank, k) for rank in ranks]
        np.testing.assert_allclose(ndcg_at_k(ranks, k), [reference.ndcg(rank, k) for rank in ranks])


@given(st.integers(0, 29), st.permutations(range(30)))
def test_ranks_do_not_depend_on_the_order_of_candidates(target, order):
    scores = np.arange(30)[None, :] // 4 * 1.0
    moved = ranks_of_targets(scores[:, order], np.array([order.index(target)]))
    assert moved == ranks_of_targets(scores, np.array([target]))


def test_a_constant_scorer_stands_in_the_middle():
    ranks = ranks_of_targets(np.zeros((3, 101)), np.array([0, 50, 100]))
    assert ranks.tolist() == [51.0] * 3
    assert hit_at_k(ranks, 10).tolist() == [0.0] * 3
    assert hit_at_k(ranks, 51).tolist() == [1.0] * 3


def test_hand_computed_values():
    ranks = np.array([1, 2, 3, 10, 10.5, 11])
    assert hit_at_k(ranks, 10).tolist() == [1, 1, 1, 1, 1, 0]
    expected = [1, 1 / math.log2(3), 1 / 2, 1 / math.log2(11), 1 / math.log2(11.5), 0]
    np.testing.assert_allclose(ndcg_at_k(ranks, 10), expected)
    assert mean(hit_at_k(ranks, 10)) == pytest.approx(5 / 6)


def test_empty_cases():
    assert ranks_of_targets(np.zeros((0, 5)), np.zeros(0, dtype=int)).shape == (0,)
    assert mean(np.zeros(0)) is None


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        ([[0.0, np.nan]], [0], "1 of 1 rows hold NaN scores, the first is row 0"),
        ([[0.0, 1.0], [np.nan, 1.0]], [0, 0], "the first is row 1"),
        ([[-np.inf, 1.0]], [0], "1 of 1 targets have an infinite score"),
        ([[0.0, 1.0]], [2], "targets in 0..1, got 2..2"),
        ([[0.0, 1.0]], [-1], "targets in 0..1, got -1..-1"),
        ([[0.0, 1.0]], [0, 1], r"got \[1, 2\] and \[2\]"),
        ([0.0, 1.0], [0], r"got \[2\] and \[1\]"),
        (np.zeros((1, 0)), [0], "targets in 0..-1"),
    ],
)
def test_what_cannot_be_ranked_raises(scores, targets, message):
    with pytest.raises(RankingError, match=message):
        ranks_of_targets(np.array(scores), np.array(targets))
