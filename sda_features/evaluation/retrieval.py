"""How well one modality finds the other: the direct measure of cross-modal alignment."""

from __future__ import annotations

import numpy as np

from sda_features.evaluation.metrics import Floats, hit_at_k, mean, ranks_of_targets
from sda_features.evaluation.neighbours import unit_rows

QUERIES_AT_ONCE = 2048


def recall_at_k(queries: Floats, candidates: Floats, k: int) -> float | None:
    """R@k: the share of queries whose counterpart is among the k nearest candidates, by cosine after centring.

    Args:
        queries: float [n, d], e.g. text vectors.
        candidates: float [n, d], e.g. image vectors of the same items.
        k: cut-off; a tie counts as its middle.

    Returns:
        None for no rows.
    """
    left, right = unit_rows(queries), unit_rows(candidates)
    ranks = [
        ranks_of_targets(left[rows] @ right.T, rows)
        for rows in np.array_split(np.arange(len(left)), max(1, len(left) // QUERIES_AT_ONCE))
    ]
    return mean(hit_at_k(np.concatenate(ranks), k))
