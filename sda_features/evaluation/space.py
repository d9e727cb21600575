"""What a space of item vectors looks like: gap, alignment, uniformity, effective rank.

| measure | formula | source |
|---|---|---|
| modality gap | \\|\\| mean t_i - mean v_i \\|\\| over unit vectors | Liang et al. 2022 |
| alignment | mean \\|\\| t_i - v_i \\|\\|^2 over unit vectors | Wang and Isola 2020, alpha = 2 |
| uniformity | log mean exp(-2 \\|\\| x_i - x_j \\|\\|^2), i != j | Wang and Isola 2020, t = 2 |
| effective rank | exp(- sum p log p), p = singular values over their sum | Roy and Vetterli 2007 |
| spread | \\|\\| mean of unit vectors \\|\\|; 1: all vectors point one way | |

All but the spread and the gap are of centred vectors, which is how the neighbours are found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sda_features.evaluation.metrics import Floats
from sda_features.evaluation.neighbours import unit_rows
from sda_features.evaluation.retrieval import recall_at_k

PAIRS_OF = 2048  # rows whose pairs uniformity is taken over
CUT_OFFS = (1, 10)  # of R@k
RETRIEVED_AMONG = 20_000  # rows at most that R@k is measured among, because it is of n squared products


@dataclass(frozen=True)
class OneModality:
    """The vectors of one modality.

    Attributes:
        found: items with a vector.
        dim: its length.
        spread: 1 when all vectors point the same way: a collapsed space.
        uniformity: log of a mean in 0..1; lower is more spread out, 0 is collapsed.
        effective_rank: directions in use, 1..dim.
    """

    found: int
    dim: int
    spread: float | None
    uniformity: float | None
    effective_rank: float | None


@dataclass(frozen=True)
class TwoModalities:
    """Text and picture vectors of the items that have both.

    Attributes:
        items: how many these are.
        among: how many R@k was measured among, drawn at random.
        modality_gap: distance of the two means, 0..2.
        alignment: mean squared distance of an item's two vectors, 0..4; lower is better aligned.
        text_to_image: k -> R@k.
        image_to_text: k -> R@k.
    """

    items: int
    among: int
    modality_gap: float | None
    alignment: float | None
    text_to_image: dict[int, float | None]
    image_to_text: dict[int, float | None]


def one_modality(vectors: Floats, found: NDArray[np.bool_], *, seed: int = 0) -> OneModality:
    """Measure one matrix.

    Args:
        vectors: float [n, d].
        found: bool [n]; other rows do not count.
        seed: of the rows that uniformity and effective rank are taken over.
    """
    present = np.asarray(vectors[found], np.float32)
    if not len(present):
        return OneModality(0, vectors.shape[1], None, None, None)
    spread = float(np.linalg.norm(unit_rows(present, centre=False).mean(axis=0)))
    unit = unit_rows(present)
    rows = unit[choose(len(unit), PAIRS_OF, seed)]
    if len(rows) > 1:
        squared = 2 - 2 * (rows @ rows.T)[np.triu_indices(len(rows), 1)]
        uniformity = float(np.log(np.exp(-2 * squared.astype(np.float64)).mean()))
    else:
        uniformity = 0.0
    return OneModality(len(present), vectors.shape[1], spread, uniformity, effective_rank(rows))


def two_modalities(text: Floats, image: Floats, both: NDArray[np.bool_], *, seed: int = 0) -> TwoModalities:
    """Compare the two vectors of each item.

    Args:
        text: float [n, d].
        image: float [n, d]; of another width, gap, alignment and R@k are None.
        both: bool [n], items that have both.
        seed: of the items that R@k is measured among.
    """
    items = int(both.sum())
    nothing: dict[int, float | None] = dict.fromkeys(CUT_OFFS)
    if not items or text.shape[1] != image.shape[1]:
        return TwoModalities(items, 0, None, None, nothing, nothing)
    left, right = text[both], image[both]
    gap = unit_rows(left, centre=False).mean(axis=0) - unit_rows(right, centre=False).mean(axis=0)
    distance = np.square(unit_rows(left) - unit_rows(right)).sum(axis=1)
    some = choose(items, RETRIEVED_AMONG, seed)
    left, right = left[some], right[some]
    return TwoModalities(
        items,
        len(some),
        float(np.linalg.norm(gap)),
        float(distance.mean()),
        {k: recall_at_k(left, right, k) for k in CUT_OFFS},
        {k: recall_at_k(right, left, k) for k in CUT_OFFS},
    )


def effective_rank(rows: Floats) -> float:
    """exp of the entropy of the singular values' shares; 0 for rows of zeros."""
    singular = np.linalg.svd(np.asarray(rows, np.float64), compute_uv=False)
    shares = singular[singular > 0] / max(singular.sum(), np.finfo(np.float64).tiny)
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def choose(items: int, most: int, seed: int) -> NDArray[np.int64]:
    """All positions, or `most` of them at random, ascending."""
    if items <= most:
        return np.arange(items)
    return np.sort(np.random.default_rng(seed).choice(items, most, replace=False))
