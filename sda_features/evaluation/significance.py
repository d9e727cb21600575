"""Do two runs differ by more than chance? Tests on per-user values of the same users.

The unit of sampling is the user. Several seeds of one setting are averaged user by user first
(`mean_over_seeds`), because repeated trainings see the same users and are no further sample of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

from sda_features.errors import RankingError
from sda_features.evaluation.metrics import Floats

DRAWS_AT_ONCE = 1 << 20  # bounds the memory of the bootstrap, about 20 bytes a draw


@dataclass(frozen=True)
class Comparison:
    """How the values of `ours` differ from those of `theirs`, user by user.

    Attributes:
        users: n, users that both have.
        difference: mean of ours - theirs.
        t: Student's statistic of that mean.
        p_value: two-sided, n - 1 degrees of freedom; 1 when no user differs. None for fewer than two
            users, and when all differ by the same amount: without a spread the test says nothing.
        low: lower end of the bootstrap interval of the mean difference.
        high: its upper end. None for no users.
    """

    users: int
    difference: float | None
    t: float | None
    p_value: float | None
    low: float | None
    high: float | None


def compare(
    ours: Floats, theirs: Floats, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> list[Comparison]:
    """Paired t-test (the paper's Table 1) and paired bootstrap interval of mean differences.

    Args:
        ours: float [n, m], for each user m values, e.g. `hit_at_k(ranks, 10)` and `ndcg_at_k(ranks, 10)`.
        theirs: float [n, m], of the same users in the same order.
        level: of the intervals.
        resamples: of the bootstrap; one resample of users serves all m values.
        seed: of the bootstrap.

    Returns:
        m comparisons. The p-values are not corrected for being m.

    Raises:
        RankingError: shapes differ, or a value is not finite.
    """
    differences = _differences(ours, theirs, dimensions=2)
    if not len(differences):
        return [Comparison(0, None, None, None, None, None)] * differences.shape[1]
    ends = bootstrap_intervals(differences, level=level, resamples=resamples, seed=seed)
    found = []
    for column, (low, high) in enumerate(ends.T.tolist()):
        values = differences[:, column]
        t, p_value = t_test(values) if len(values) > 1 else (None, None)
        found.append(Comparison(len(values), float(values.mean()), t, p_value, low, high))
    return found


def mean_over_seeds(values: Sequence[Floats]) -> NDArray[np.float64]:
    """One value a user from several runs of one setting: float [n] each -> float64 [n]."""
    averaged: NDArray[np.float64] = np.mean(np.stack(values), axis=0, dtype=np.float64)
    return averaged


def seed_pairs_won(ours: Sequence[float], theirs: Sequence[float]) -> tuple[int, int]:
    """Pairs of a seed of ours and one of theirs in which ours has the higher score, and all pairs."""
    return sum(a > b for a in ours for b in theirs), len(ours) * len(theirs)


def paired_t_test(ours: Floats, theirs: Floats) -> tuple[float | None, float | None]:
    """`t_test` of ours - theirs, both float [n].

    Raises:
        RankingError: shapes differ, fewer than two users, or a value is not finite.
    """
    return t_test(_differences(ours, theirs, dimensions=1))


def t_test(differences: Floats) -> tuple[float | None, float | None]:
    """t = mean(d) / (s / sqrt(n)) of d = `differences`, and its two-sided p-value (Student 1908).

    Args:
        differences: float [n], n >= 2.

    Returns:
        t and p. All differences zero: 0 and 1. All equal and not zero: None and None.

    Raises:
        RankingError: fewer than two users.
    """
    n = len(differences)
    if n < 2:
        raise RankingError(f"A paired t-test needs at least 2 users, got {n}.")
    mean, deviation = float(differences.mean()), float(differences.std(ddof=1))
    if deviation <= 1e-12 * abs(mean):  # equal but for rounding
        return (0.0, 1.0) if mean == 0 else (None, None)
    t = mean / (deviation / math.sqrt(n))
    return t, two_sided_p(t, n - 1)


def bootstrap_intervals(
    differences: Floats, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> NDArray[np.float64]:
    """Percentile intervals of the means of m columns under resampling of users (Efron 1979).

    A resample draws n users with replacement. It is kept as how often each user was drawn, so that
    the means of all columns are one matrix product.

    Args:
        differences: float [n, m], n >= 1.
        level: share of resampled means inside an interval.
        resamples: how many.
        seed: of the draw.

    Returns:
        float64 [2, m], lower and upper ends.
    """
    n, random = len(differences), np.random.default_rng(seed)
    means, most = [], max(1, DRAWS_AT_ONCE // n)
    for start in range(0, resamples, most):
        rows = np.arange(min(most, resamples - start))[:, None]
        drawn = random.integers(0, n, (len(rows), n)) + n * rows
        counts = np.bincount(drawn.ravel(), minlength=len(rows) * n).reshape(-1, n)
        means.append(counts.astype(np.float64) @ differences / n)
    ends: NDArray[np.float64] = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return ends


def two_sided_p(t: float, degrees: int) -> float:
    """P(|T| >= |t|) of Student's t distribution: I_x(degrees / 2, 1 / 2) at x = degrees / (degrees + t^2)."""
    square = t * t
    if square < 1:  # x near 1 has lost the digits of t
        return float(1 - betainc(0.5, degrees / 2, square / (degrees + square)))
    return float(betainc(degrees / 2, 0.5, degrees / (degrees + square)))


def _differences(ours: Floats, theirs: Floats, dimensions: int) -> NDArray[np.float64]:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.ndim != dimensions or ours.shape != theirs.shape:
        raise RankingError(
            f"Expected values of the same users from both runs, got {list(ours.shape)} and {list(theirs.shape)}."
        )
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise RankingError(
            "Values to compare hold NaN or infinity; a run with such ranks cannot be compared."
        )
    return ours - theirs
