"""The two rankings of leave-one-out evaluation, and the groups of users they are reported for.

`sampled-N` ranks the target among N uniform negatives that the user never took; `full` ranks it
among the whole catalogue without the user's earlier items. Both are computed from the same scores.
The two differ by a factor, and sampled metrics can order models differently (Krichene and Rendle
2020), so the protocol is part of each metric's name: `hit@10/full/tail`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sda_features.config import EvaluationSettings
from sda_features.errors import RankingError
from sda_features.evaluation.metrics import METRICS, mean, ranks_of_targets
from sda_features.evaluation.negatives import UnseenItems
from sda_features.logs.interactions import Interactions
from sda_features.logs.splits import Split

# User indices [B] -> scores float32 [B, I + 1]; column 0 is padding and ignored.
Scorer = Callable[[NDArray[np.int64]], NDArray[np.float32]]
Protocol = Literal["full", "sampled"]

SCORES_AT_ONCE = 1 << 21  # 8 MiB of float32: larger blocks leave the cache and run slower


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Ranks of every evaluated user; the metrics follow from them.

    Attributes:
        cutoff: k.
        users: int64 [T] user indices.
        targets: int32 [T] item codes.
        ranks: protocol name -> float64 [T], from 1.
        groups: group name -> bool [T].
    """

    cutoff: int
    users: NDArray[np.int64]
    targets: NDArray[np.int32]
    ranks: dict[str, NDArray[np.float64]]
    groups: dict[str, NDArray[np.bool_]]

    def metrics(self) -> dict[str, float | int | None]:
        """`users/GROUP`, `hit@k/PROTOCOL/GROUP` and `ndcg@k/PROTOCOL/GROUP`; None for a group without users."""
        values: dict[str, float | int | None] = {}
        for group, members in self.groups.items():
            values[f"users/{group}"] = int(members.sum())
            for protocol, ranks in self.ranks.items():
                for metric, at_k in METRICS.items():
                    name = f"{metric}@{self.cutoff}/{protocol}/{group}"
                    values[name] = mean(at_k(ranks[members], self.cutoff))
        return values


def evaluate(
    score: Scorer,
    split: Split,
    settings: EvaluationSettings,
    *,
    holdout: Literal["validation", "test"] = "test",
    protocols: tuple[Protocol, ...] = ("full", "sampled"),
    batch_users: int | None = None,
) -> Evaluation:
    """Rank every held-out item.

    Args:
        score: see `Scorer`; it must not look at the held-out item.
        split: gives targets, the seen items and the training popularity.
        settings: cut-off, number and seed of the negatives, limit of the tail.
        holdout: which of the split's two holdouts.
        protocols: which rankings.
        batch_users: users scored at a time; changes memory, never the result. None: about 8 MiB of scores.

    Raises:
        RankingError: scores of the wrong shape, NaN, or fewer unseen items than negatives.
    """
    held = split.test if holdout == "test" else split.validation
    batch_users = batch_users or max(1, SCORES_AT_ONCE // (split.train.item_count + 1))
    negatives = None
    if "sampled" in protocols:
        random = np.random.default_rng(settings.seed)
        negatives = UnseenItems(split.interactions).draw_distinct(held.users, settings.negatives, random)
    names = {"full": "full", "sampled": f"sampled-{settings.negatives}"}
    parts: dict[str, list[NDArray[np.float64]]] = {names[protocol]: [] for protocol in protocols}
    for start in range(0, len(held.users), batch_users):
        batch = slice(start, start + batch_users)
        users, targets = held.users[batch], held.targets[batch]
        scores = score(users)
        if scores.shape != (len(users), split.train.item_count + 1):
            raise RankingError(
                f"Expected scores [{len(users)}, {split.train.item_count + 1}] (column 0 = padding), "
                f"got {list(scores.shape)}."
            )
        if "full" in protocols:
            ranks = ranks_of_targets(without_seen(scores, held.history, users, targets), targets)
            parts["full"].append(ranks)
        if negatives is not None:
            candidates = np.concatenate([targets[:, None], negatives[batch]], axis=1)
            sampled = np.take_along_axis(scores, candidates, axis=1)
            ranks = ranks_of_targets(sampled, np.zeros(len(users), dtype=np.int64))
            parts[names["sampled"]].append(ranks)
    return Evaluation(
        cutoff=settings.cutoff,
        users=held.users,
        targets=held.targets,
        ranks={name: np.concatenate(ranks) for name, ranks in parts.items()},
        groups=user_groups(held.targets, split.train, settings),
    )


def user_groups(
    targets: NDArray[np.int32], train: Interactions, settings: EvaluationSettings
) -> dict[str, NDArray[np.bool_]]:
    """Which users count for which group, by the training popularity of their target.

    - `all`: everybody.
    - `warm`: the target has interactions in `train`.
    - `tail`: the target has fewer than `settings.tail_below` interactions in `train`, or none.
    - `cold`: the target has none.
    - `lowest-quintile`: the target is among the floor(I / 5) items with the fewest interactions in
      `train`, of two equally popular items the one with the lower code first.
    """
    by_popularity = np.argsort(train.item_counts[1:], kind="stable") + 1
    lowest = np.zeros(train.item_count + 1, dtype=np.bool_)
    lowest[by_popularity[: train.item_count // 5]] = True
    counts = train.item_counts[targets]
    return {
        "all": np.ones(len(targets), dtype=np.bool_),
        "warm": counts > 0,
        "tail": counts < settings.tail_below,
        "cold": counts == 0,
        "lowest-quintile": lowest[targets],
    }


def popularity_scorer(train: Interactions) -> Scorer:
    """The baseline that scores an item by its interactions in `train`, the same for every user."""
    counts = train.item_counts.astype(np.float32)

    def score(users: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.broadcast_to(counts, (len(users), len(counts)))

    return score


def without_seen(
    scores: NDArray[Any], history: Interactions, users: NDArray[np.int64], targets: NDArray[np.int32]
) -> NDArray[Any]:
    """A copy with -inf for padding and for what the user took before; the target keeps its score.

    Args:
        scores: float [B, I + 1].
        history: what is known of the users.
        users: int64 [B].
        targets: int32 [B] item codes.
    """
    candidates = scores.copy()
    candidates[history.rows_of(users)] = -np.inf
    candidates[:, 0] = -np.inf
    rows = np.arange(len(users))
    candidates[rows, targets] = scores[rows, targets]
    return candidates
