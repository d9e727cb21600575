"""How well one modality finds the other: the direct measure of cross-modal alignment."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sda_features.evaluation.metrics import Floats, hit_at_k, mean, ranks_of_targets
from sda_features.evaluation.neighbours import unit_rows

QUERIES_AT_ONCE = 2048


def retrieval_ranks(queries: Floats, candidates: Floats, *, centre: bool = True) -> NDArray[np.float64]:
    """Rank of row i's own counterpart among all candidates, by cosine similarity; ties at their middle.

    Args:
        queries: float [n, d], e.g. text vectors.
        candidates: float [n, d], e.g. image vectors of the same items.
        centre: subtract each side's mean first, because vectors of language models share a large
            common component that says nothing about the item.

    Returns:
        float64 [n], from 1.
    """
    left, right = unit_rows(queries, centre=centre), unit_rows(candidates, centre=centre)
    ranks = [
        ranks_of_targets(left[rows] @ right.T, rows)
        for rows in np.array_split(np.arange(len(left)), max(1, len(left) // QUERIES_AT_ONCE))
    ]
    return np.concatenate(ranks)


def recall_at_k(queries: Floats, candidates: Floats, k: int, *, centre: bool = True) -> float | None:
    """R@k: the share of queries whose counterpart is among the k nearest candidates; None for no rows."""
    return mean(hit_at_k(retrieval_ranks(queries, candidates, centre=centre), k))
