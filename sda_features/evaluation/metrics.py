"""Rank-based metrics of one held-out item a user. Pure functions on numpy arrays.

Ranks count from 1 (best). Everything is per user; `mean` is the only place that aggregates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sda_features.errors import RankingError

Floats = NDArray[np.floating[Any]]


def ranks_of_targets(scores: Floats, targets: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Rank of one target column in each row, ties at their middle.

    rank = 1 + |{j : s_j > s_t}| + |{j != t : s_j = s_t}| / 2

    A scorer that gives every candidate the same score ranks the target in the middle, (n + 1) / 2,
    whatever the order of the columns. A score of -inf removes a candidate.

    Args:
        scores: float [B, n]; higher is better.
        targets: integer [B], column of the target in each row.

    Returns:
        float64 [B], in 1..n, in steps of 1/2.

    Raises:
        RankingError: wrong shapes, a target out of range, NaN anywhere, or a target that is not finite.
    """
    scores, targets = np.asarray(scores), np.asarray(targets)
    if scores.ndim != 2 or targets.shape != scores.shape[:1]:
        raise RankingError(
            f"Expected scores [B, n] and targets [B], got {list(scores.shape)} and {list(targets.shape)}."
        )
    rows, columns = scores.shape
    if not rows:
        return np.zeros(0)
    if not columns or targets.min() < 0 or targets.max() >= columns:
        raise RankingError(f"Expected targets in 0..{columns - 1}, got {targets.min()}..{targets.max()}.")
    broken = np.isnan(scores.max(axis=1))  # max hands NaN on
    if broken.any():
        raise RankingError(
            f"{broken.sum()} of {rows} rows hold NaN scores, the first is row {broken.argmax()}. "
            "NaN cannot be ranked: the model has diverged or its input is not finite."
        )
    of_target = scores[np.arange(rows), targets][:, None]
    if not np.isfinite(of_target).all():
        raise RankingError(
            f"{(~np.isfinite(of_target)).sum()} of {rows} targets have an infinite score: "
            "the target was removed from its own ranking, or the model overflows."
        )
    better = np.count_nonzero(scores > of_target, axis=1)
    ties = np.count_nonzero(scores == of_target, axis=1) - 1
    ranks: NDArray[np.float64] = 1 + better + ties / 2
    return ranks


def hit_at_k(ranks: Floats, k: int) -> NDArray[np.float64]:
    """Hit@k with one relevant item: 1 if rank < k + 1, else 0; float64, shape of `ranks`.

    For whole ranks that is rank <= k. A rank of k + 1/2, the middle of an even number of ties across the
    cut-off, counts as a hit.
    """
    return (np.asarray(ranks) < k + 1).astype(np.float64)


def ndcg_at_k(ranks: Floats, k: int) -> NDArray[np.float64]:
    """NDCG@k with one relevant item: 1 / log2(rank + 1) where Hit@k is 1, else 0; float64, shape of `ranks`.

    The ideal ranking gains 1 / log2(2) = 1, so no further normalisation is needed.
    """
    return hit_at_k(ranks, k) / np.log2(np.asarray(ranks, dtype=np.float64) + 1)


METRICS = {"hit": hit_at_k, "ndcg": ndcg_at_k}


def mean(values: Floats) -> float | None:
    """Mean over users; None when there are none, because no number would be true."""
    return float(np.mean(values)) if len(values) else None
