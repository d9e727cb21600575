"""Slow-and-plain rankers that know the planted factors: how much signal is there to find?"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sda_features.demo.catalogue import Catalogue
from sda_features.demo.factors import FACTORS
from sda_features.evaluation.metrics import hit_at_k, ranks_of_targets


def sequences(log: pa.Table, item_ids: tuple[str, ...]) -> list[NDArray[np.int64]]:
    """Item positions of each user, in time order."""
    position = {item_id: index for index, item_id in enumerate(item_ids)}
    events: dict[str, list[int]] = {}
    for user, item in zip(log["user_id"].to_pylist(), log["item_id"].to_pylist(), strict=True):
        events.setdefault(user, []).append(position[item])
    return [np.array(items) for items in events.values()]


def training_counts(histories: list[NDArray[np.int64]], items: int) -> NDArray[np.int64]:
    return np.bincount(np.concatenate([history[:-2] for history in histories]), minlength=items)


def factor_scores(
    catalogue: Catalogue, histories: list[NDArray[np.int64]], columns: list[int]
) -> NDArray[np.float64]:
    """log popularity + log p(levels of i | user): levels counted in the user's history, smoothed."""
    items = len(catalogue.item_ids)
    scores = np.tile(np.log(training_counts(histories, items) + 30.0), (len(histories), 1))
    for column in columns:
        levels = catalogue.factors[:, column]
        count = len(FACTORS[column].levels)
        overall = np.bincount(levels[np.concatenate([h[:-2] for h in histories])], minlength=count)
        prior = overall / overall.sum()
        for row, history in enumerate(histories):
            seen = np.bincount(levels[history[:-1]], minlength=count)
            share = (seen + 4 * prior) / (len(history) - 1 + 4)
            scores[row] += np.log(share / prior)[levels]
    return scores


def popularity_scores(histories: list[NDArray[np.int64]], items: int) -> NDArray[np.float64]:
    return np.tile(training_counts(histories, items).astype(float), (len(histories), 1))


def cooccurrence_scores(histories: list[NDArray[np.int64]], items: int) -> NDArray[np.float64]:
    """Item-to-item cosine of training baskets, summed over the user's history."""
    baskets = np.zeros((len(histories), items))
    for row, history in enumerate(histories):
        baskets[row, history[:-2]] = 1
    together = baskets.T @ baskets
    np.fill_diagonal(together, 0)
    norms = np.sqrt(np.maximum(baskets.sum(0), 1))
    known = baskets.copy()
    for row, history in enumerate(histories):
        known[row, history[-2]] = 1
    return known @ (together / norms[:, None] / norms)


def hit_at_10(
    scores: NDArray[np.float64], histories: list[NDArray[np.int64]], users: NDArray[np.bool_] | None = None
) -> float:
    """Share of users whose last item is among the ten best of the catalogue, seen items excluded."""
    ranked = scores.copy()
    for row, history in enumerate(histories):
        ranked[row, history[:-1]] = -np.inf
    hits = hit_at_k(ranks_of_targets(ranked, np.array([history[-1] for history in histories])), 10)
    return float((hits if users is None else hits[users]).mean())
