"""Exact nearest neighbours by cosine, in blocks; and what two lists of neighbours have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sda_features.evaluation.metrics import Floats

Neighbours = NDArray[np.int32]

ROWS_AT_ONCE = 1024
SAME = 0.9999


def unit_rows(matrix: Floats, *, centre: bool = True) -> NDArray[np.float32]:
    """Rows of length 1, float32 [n, d]; a zero row, which stands for a missing vector, stays zero.

    Args:
        matrix: float [n, d].
        centre: subtract the mean of the rows that are not zero first, because vectors of language
            models share a large common component that says nothing about the item.
    """
    rows = np.array(matrix, np.float32)
    present = rows.any(axis=1)
    if centre and present.any():
        rows[present] -= rows[present].mean(axis=0, dtype=np.float64)
    norms: NDArray[Any] = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float32] = rows / np.maximum(norms, np.finfo(np.float32).tiny)
    return unit


def side_by_side(*matrices: Floats) -> NDArray[np.float32]:
    """Unit rows next to each other, [n, d1 + d2 + ...]: their product is the sum of the cosines."""
    return np.concatenate([unit_rows(matrix) for matrix in matrices], axis=1)


def nearest(
    queries: Floats,
    base: Floats,
    k: int,
    *,
    own: Sequence[int] | None = None,
    rows_at_once: int = ROWS_AT_ONCE,
) -> Neighbours:
    """Positions of the k rows of `base` with the largest product, best first.

    Args:
        queries: float32 [q, d].
        base: float32 [n, d]; a zero row is never a neighbour.
        k: number of neighbours.
        own: position in `base` of each query, which is not its own neighbour; None: all count.
        rows_at_once: queries whose n scores are held together.

    Returns:
        int32 [q, k]; -1 where a query is zero or has no further neighbour. Ties: the smaller position first.
    """
    found = np.full((len(queries), k), -1, np.int32)
    absent = ~base.any(axis=1)
    width = min(k, len(base))
    for start in range(0, len(queries), rows_at_once):
        rows = slice(start, start + rows_at_once)
        scores = queries[rows] @ base.T
        scores[:, absent] = -np.inf
        if own is not None:
            here = np.asarray(own[rows])
            scores[np.arange(len(here)), here] = -np.inf
        if width < len(base):
            best = np.argpartition(-scores, width - 1, axis=1)[:, :width]
        else:
            best = np.tile(np.arange(width), (len(scores), 1))
        best.sort(axis=1)
        values = np.take_along_axis(scores, best, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        best, values = np.take_along_axis(best, order, axis=1), np.take_along_axis(values, order, axis=1)
        best[~np.isfinite(values)] = -1
        best[~queries[rows].any(axis=1)] = -1
        found[rows, :width] = best
    return found


def kept_share(before: Neighbours, after: Neighbours) -> float | None:
    """Share of the neighbours in `before` that are in the same row of `after`; None if there are none.

    Args:
        before: int [n, k], -1 for none.
        after: int [n, k'], the same items in the same numbering.
    """
    present = before >= 0
    if not present.any():
        return None
    kept = (before[:, :, None] == after[:, None, :]).any(axis=2)
    return float((kept & present).sum() / present.sum())


def purity(neighbours: Neighbours, labels: Sequence[str | None]) -> tuple[float, float] | None:
    """How often a neighbour has the item's own label, and how often a random item has.

    Args:
        neighbours: int [n, k], -1 for none.
        labels: n labels; None is unknown and left out.

    Returns:
        Share among neighbours, share among all pairs of labelled items; None without any such neighbour.
    """
    codes = {label: code for code, label in enumerate(dict.fromkeys(filter(None, labels)))}
    code = np.array([codes.get(label, -1) if label else -1 for label in labels])
    counted = (neighbours >= 0) & (code[:, None] >= 0) & (code[neighbours] >= 0)
    if not counted.any():
        return None
    same = (code[neighbours] == code[:, None]) & counted
    sizes = np.bincount(code[code >= 0]).astype(np.float64)
    pairs = sizes.sum() * (sizes.sum() - 1)
    return float(same.sum() / counted.sum()), float((sizes * (sizes - 1)).sum() / pairs)


def identical(unit: Floats, queries: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many other rows each query is the same as, up to rounding: cosine above `SAME`.

    Args:
        unit: float32 [n, d], rows of length 1 or 0, not centred.
        queries: int64 [q], positions in `unit`.

    Returns:
        int64 [q].
    """
    counts = [
        (unit[rows] @ unit.T > SAME).sum(axis=1) - unit[rows].any(axis=1)
        for rows in np.array_split(queries, max(1, len(queries) // ROWS_AT_ONCE))
    ]
    return np.concatenate(counts) if counts else np.zeros(0, np.int64)
