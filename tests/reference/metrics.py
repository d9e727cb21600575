"""Slow plain twins of the evaluation: one user, one candidate at a time."""

import math
from collections.abc import Sequence


def rank_of_target(scores: Sequence[float], target: int, tolerance: float = 0) -> float:
    """1 + better candidates + half of the equal ones."""
    mine = scores[target]
    better = sum(score > mine + tolerance for score in scores)
    ties = sum(abs(score - mine) <= tolerance for score in scores) - 1
    return 1 + better + ties / 2


def hit(rank: float, k: int) -> float:
    return 1.0 if rank < k + 1 else 0.0


def ndcg(rank: float, k: int) -> float:
    return 1 / math.log2(rank + 1) if rank < k + 1 else 0.0


def full_rank(scores: Sequence[float], target: int, history: Sequence[int]) -> float:
    """Rank of item code `target` among codes 1.. that are not in `history`, the target always among them."""
    others = [code for code in range(1, len(scores)) if code != target and code not in history]
    return rank_of_target([scores[code] for code in (target, *others)], 0)
