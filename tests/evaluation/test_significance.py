import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sda_features.errors import RankingError
from sda_features.evaluation import significance
from sda_features.evaluation.metrics import hit_at_k, ndcg_at_k
from sda_features.evaluation.significance import (
    bootstrap_intervals,
    compare,
    mean_over_seeds,
    paired_t_test,
    seed_pairs_won,
    two_sided_p,
)
from sda_features.report.tables import is_significant_over_seeds


@pytest.mark.parametrize(
    ("t", "degrees", "p"),
    # Upper points of Student's t as printed in statistical tables, two-sided.
    [
        (12.7062, 1, 0.05),
        (63.6567, 1, 0.01),
        (4.3027, 2, 0.05),
        (2.7764, 4, 0.05),
        (2.2281, 10, 0.05),
        (3.1693, 10, 0.01),
        (2.0423, 30, 0.05),
        (1.9799, 120, 0.05),
        (1.9600, 10**7, 0.05),
        (3.2905, 10**7, 0.001),
    ],
)
def test_p_values_are_those_of_printed_tables(t, degrees, p):
    assert two_sided_p(t, degrees) == pytest.approx(p, rel=2e-4)
    assert two_sided_p(-t, degrees) == two_sided_p(t, degrees)


@given(st.floats(-40, 40))
def test_p_values_of_one_and_two_degrees_have_a_closed_form(t):
    assert two_sided_p(t, 1) == pytest.approx(1 - 2 * math.atan(abs(t)) / math.pi, rel=1e-9, abs=1e-12)
    assert two_sided_p(t, 2) == pytest.approx(1 - abs(t) / math.sqrt(2 + t * t), rel=1e-8, abs=1e-12)


@given(st.floats(0, 40), st.integers(1, 100_000))
def test_p_values_match_scipy(t, degrees):
    assert two_sided_p(t, degrees) == pytest.approx(2 * stats.t.sf(t, degrees), rel=1e-9, abs=1e-290)


def test_a_t_test_by_hand():
    # Differences 1, 2, 3: mean 2, s = 1, t = 2 sqrt(3); with 2 degrees of freedom p = 1 - t / sqrt(2 + t^2).
    t, p = paired_t_test(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]))
    assert t == pytest.approx(2 * math.sqrt(3))
    assert p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert paired_t_test(np.zeros(5), np.zeros(5)) == (0.0, 1.0)
    assert paired_t_test(np.ones(5), np.full(5, 0.9)) == (None, None)
    assert paired_t_test(np.zeros(5), np.ones(5)) == (None, None)


def ranks(seed, users=500):
    random = np.random.default_rng(seed)
    return random.integers(2, 60, users) / 2


def test_the_t_test_matches_scipy_on_metrics_of_random_runs():
    for seed in range(5):
        ours, theirs = (ndcg_at_k(ranks(2 * seed + side), 10) for side in (0, 1))
        expected = stats.ttest_rel(ours, theirs)
        found = paired_t_test(ours, theirs)
        assert found == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9)


def test_the_bootstrap_matches_its_slow_twin():
    """Users drawn one by one: the ends agree up to the noise of either sample."""
    both = np.stack([metric(ranks(0), 10) - metric(ranks(1), 10) for metric in (hit_at_k, ndcg_at_k)], axis=1)
    fast = bootstrap_intervals(both)
    assert fast.shape == (2, 2)
    random = np.random.default_rng(1)
    for differences, ends in zip(both.T, fast.T, strict=True):
        means = [random.choice(differences, len(differences)).mean() for _ in range(10_000)]
        error = differences.std() / math.sqrt(len(differences))
        np.testing.assert_allclose(ends, np.quantile(means, [0.025, 0.975]), atol=0.1 * error)
        # ... and both with the normal interval, as they must for 500 users.
        normal = differences.mean() + 1.96 * error * np.array([-1, 1])
        np.testing.assert_allclose(ends, normal, atol=0.15 * error)
    np.testing.assert_array_equal(bootstrap_intervals(both), fast)
    assert (bootstrap_intervals(both, seed=1) != fast).any()
    narrow = bootstrap_intervals(both, level=0.5)
    assert (fast[0] < narrow[0]).all()
    assert (narrow[1] < fast[1]).all()


def test_the_bootstrap_does_not_need_memory_for_all_resamples(monkeypatch):
    differences = np.random.default_rng(0).normal(size=(50, 2))
    monkeypatch.setattr(significance, "DRAWS_AT_ONCE", 150)  # three resamples at a time
    ends = bootstrap_intervals(differences, resamples=2000)
    monkeypatch.undo()
    np.testing.assert_allclose(ends, bootstrap_intervals(differences, resamples=2000), atol=0.05)


def test_intervals_cover_as_often_as_they_say():
    random = np.random.default_rng(3)
    low, high = bootstrap_intervals(random.choice([-1.0, 0, 0, 1], (200, 400)), resamples=1000)
    # Columns have a true mean of 0; 95 % of 400, five standard errors of a binomial.
    assert 358 <= ((low <= 0) & (high >= 0)).sum() <= 400


def test_a_true_difference_is_found_and_a_chance_one_is_not():
    base = ranks(0, 5000)
    better = np.maximum(base - 1, 1)
    (found,) = compare(hit_at_k(better, 10)[:, None], hit_at_k(base, 10)[:, None])
    assert found.users == 5000
    assert found.p_value < 1e-6
    assert 0 < found.low < found.difference < found.high
    (chance,) = compare(hit_at_k(ranks(1, 5000), 10)[:, None], hit_at_k(base, 10)[:, None])
    assert chance.low < 0 < chance.high
    assert chance.p_value > 0.05


def test_empty_and_single_users():
    nobody, other = compare(np.zeros((0, 2)), np.zeros((0, 2)))
    assert nobody == other
    assert (nobody.users, nobody.difference, nobody.p_value, nobody.low) == (0, None, None, None)
    (one,) = compare(np.ones((1, 1)), np.zeros((1, 1)))
    assert (one.difference, one.t, one.p_value, one.low, one.high) == (1.0, None, None, 1.0, 1.0)
    with pytest.raises(RankingError, match="at least 2 users, got 1"):
        paired_t_test(np.ones(1), np.zeros(1))


def test_what_cannot_be_compared_raises():
    with pytest.raises(RankingError, match=r"got \[2, 1\] and \[3, 1\]"):
        compare(np.zeros((2, 1)), np.zeros((3, 1)))
    with pytest.raises(RankingError, match="NaN or infinity"):
        paired_t_test(np.array([0.0, np.nan]), np.zeros(2))


def test_seeds_are_averaged_user_by_user():
    assert mean_over_seeds([np.array([0.0, 1.0]), np.array([1.0, 1.0])]).tolist() == [0.5, 1.0]


def test_users_can_agree_where_seeds_do_not():
    """One seed of three is far behind: the mean over seeds wins for sure, two of nine pairs of seeds are lost."""
    random = np.random.default_rng(0)
    ours = [random.normal(shift, 0.1, 1000) for shift in (0.9, 0.9, 0.5)]
    theirs = [random.normal(shift, 0.1, 1000) for shift in (0.6, 0.6, 0.4)]
    _, p_value = paired_t_test(mean_over_seeds(ours), mean_over_seeds(theirs))
    assert p_value < 1e-6
    won, pairs = seed_pairs_won([seed.mean() for seed in ours], [seed.mean() for seed in theirs])
    assert (won, pairs) == (7, 9)
    assert not is_significant_over_seeds(p_value, won, pairs)
    assert seed_pairs_won([0.2], [0.2]) == (0, 1)
