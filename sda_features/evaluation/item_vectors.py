"""What item vectors know of behaviour, without training anything.

Two questions, both ranked over the whole catalogue by the cosine of vectors:

- item to item: of what users took together, or one after the other, how much is among an item's k
  nearest? `recall@k/session/GROUP` and `recall@k/next/GROUP`;
- next item: where does the held-out item rank for a decayed mean of the user's history?
  `hit@k/PROTOCOL/GROUP` and `ndcg@k/PROTOCOL/GROUP`, as `protocols.evaluate` measures a recommender;
  the sampled ranking only where everybody has left enough items to draw from.

The unit of a value is the user: of several pairs a user counts with their mean, so that a session of
fifty items is not worth a thousand baskets of two, and so that two sets of vectors compare user by user.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sda_features.config import EvaluationSettings, VectorEvaluationSettings
from sda_features.evaluation.metrics import METRICS, Floats, hit_at_k, ranks_of_targets
from sda_features.evaluation.neighbours import side_by_side, unit_rows
from sda_features.evaluation.protocols import SCORES_AT_ONCE, Scorer, evaluate, popularity_scorer, user_groups
from sda_features.logs.interactions import Interactions, next_positions, session_positions
from sda_features.logs.splits import Holdout, Split

Bools = NDArray[np.bool_]
# Item codes [B] -> scores float32 [B, I + 1] of every item as a neighbour; column 0 is padding.
ItemScorer = Callable[[NDArray[np.int64]], NDArray[np.float32]]

LEAST_ROWS = 32  # scored together, however large the catalogue: each block reads all vectors once
UNKNOWN = -2.0  # score of an item without a vector: below every cosine


@dataclass(frozen=True, eq=False)
class Pairs:
    """Items that one user took together; each triple once.

    Attributes:
        users: int64 [n], sorted.
        queries: int64 [n], item codes.
        targets: int64 [n], item codes; never the query itself.
    """

    users: NDArray[np.int64]
    queries: NDArray[np.int64]
    targets: NDArray[np.int64]

    def where(self, kept: Bools) -> Pairs:
        """The pairs that `kept` [n] marks."""
        return Pairs(self.users[kept], self.queries[kept], self.targets[kept])


@dataclass(frozen=True, eq=False)
class Measure:
    """One metric, user by user.

    Attributes:
        name: e.g. `recall@20/session/cold`.
        users: int64 [m], user indices, the same for all vectors of one log.
        values: float64 [m], in 0..1.
    """

    name: str
    users: NDArray[np.int64]
    values: NDArray[np.float64]


def unit_vectors(modalities: Mapping[str, Floats]) -> NDArray[np.float32]:
    """One vector an item: each modality without its mean and at unit norm, side by side, at unit norm again.

    An item that lacks a modality is known by the others.

    Args:
        modalities: name -> float [I + 1, d]; row 0 and missing vectors are zero.

    Returns:
        float32 [I + 1, D]; zero where no modality has a vector.
    """
    return unit_rows(side_by_side(*modalities.values()), centre=False)


def session_pairs(log: Interactions, held: Bools, *, window: int) -> Pairs:
    """Items of one session, each with each, where the target's interaction is `held`.

    Args:
        log: see `session_positions` for what a session is.
        held: bool [n], interactions that may be targets.
        window: how far apart.
    """
    places = session_positions(log, window)
    return _distinct(log, np.concatenate([places, places[:, ::-1]]), held)


def next_pairs(log: Interactions, held: Bools) -> Pairs:
    """Each item and what the same user took next, where that interaction is `held` [n]."""
    return _distinct(log, next_positions(log), held)


def evaluate_vectors(
    modalities: Mapping[str, Floats],
    split: Split,
    settings: VectorEvaluationSettings,
    evaluation: EvaluationSettings,
    *,
    products: NDArray[np.integer[Any]] | None = None,
) -> list[Measure]:
    """Measure the vectors of one feature set.

    Args:
        modalities: see `unit_vectors`.
        split: which interactions are held out, and what items have in training.
        settings: of this evaluation.
        evaluation: cut-off and limit of the tail.
        products: int [I + 1], equal for items of one product. Then another colour of a product that the
            user has is neither target nor candidate.

    Raises:
        RankingError: a vector is not finite.
    """
    units = unit_vectors(modalities)
    found: Bools = np.any(units, axis=1)
    return evaluate_scorers(
        _cosine_to_items(units, found),
        _cosine_to_histories(units, found, split.test.history, settings),
        split,
        settings,
        evaluation,
        products=products,
    )


def evaluate_popularity(
    split: Split,
    settings: VectorEvaluationSettings,
    evaluation: EvaluationSettings,
    *,
    products: NDArray[np.integer[Any]] | None = None,
) -> list[Measure]:
    """The same measures of the baseline that scores an item by its training interactions."""
    score = popularity_scorer(split.train)
    return evaluate_scorers(score, score, split, settings, evaluation, products=products)


def evaluate_scorers(
    neighbours: ItemScorer,
    following: Scorer,
    split: Split,
    settings: VectorEvaluationSettings,
    evaluation: EvaluationSettings,
    *,
    products: NDArray[np.integer[Any]] | None = None,
) -> list[Measure]:
    """Both questions, asked of any two scorers; see `evaluate_vectors`."""
    log, train = split.interactions, split.train
    held = split.held if settings.pairs == "test" else np.ones(len(log.items), np.bool_)
    sample = _sampled_users(log, split, settings)
    kinds = {"session": session_pairs(log, held, window=settings.window), "next": next_pairs(log, held)}
    measures = []
    for kind, pairs in kinds.items():
        pairs = pairs.where(sample[pairs.users])
        if products is not None:
            pairs = pairs.where(products[pairs.queries] != products[pairs.targets])
        hits = hit_at_k(_pair_ranks(neighbours, pairs, products), settings.neighbours)
        for group, members in user_groups(pairs.targets.astype(np.int32), train, evaluation).items():
            name = f"recall@{settings.neighbours}/{kind}/{group}"
            measures.append(_by_user(name, pairs.users[members], hits[members]))
    kept = sample[split.test.users]
    test = replace(split.test, users=split.test.users[kept], targets=split.test.targets[kept])
    split = replace(split, test=_other_products(test, products))
    if products is not None:
        following = _without_products(following, split.test, products)
    enough = log.item_count - log.lengths.max() >= evaluation.negatives
    result = evaluate(
        following,
        split,
        evaluation,
        protocols=("full", "sampled") if enough else ("full",),
        batch_users=_rows_at_once(log.item_count + 1),
    )
    k = evaluation.cutoff
    for protocol, ranks in result.ranks.items():
        for group, members in result.groups.items():
            for metric, at_k in METRICS.items():
                name = f"{metric}@{k}/{protocol}/{group}"
                measures.append(Measure(name, result.users[members], at_k(ranks[members], k)))
    return measures


def _cosine_to_items(units: NDArray[np.float32], found: Bools) -> ItemScorer:
    def score(codes: NDArray[np.int64]) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = units[codes] @ units.T
        scores[:, ~found] = UNKNOWN
        return scores

    return score


def _cosine_to_histories(
    units: NDArray[np.float32], found: Bools, history: Interactions, settings: VectorEvaluationSettings
) -> Scorer:
    """Cosine with sum_a decay^a v_a over the last items, a = 0 for the latest."""

    def score(users: NDArray[np.int64]) -> NDArray[np.float32]:
        recent = history.recent(users, settings.history)  # [B, L], the latest last
        weights = settings.decay ** np.arange(recent.shape[1])[::-1].astype(np.float32)
        means = unit_rows(np.einsum("l,bld->bd", weights, units[recent]), centre=False)
        scores: NDArray[np.float32] = means @ units.T
        scores[:, ~found] = UNKNOWN
        return scores

    return score


def _pair_ranks(
    score: ItemScorer, pairs: Pairs, products: NDArray[np.integer[Any]] | None
) -> NDArray[np.float64]:
    """Rank of each pair's target among all items but the query, float64 [n]; each query is scored once."""
    ranks = np.zeros(len(pairs.users))
    if not len(ranks):
        return ranks
    order = np.argsort(pairs.queries, kind="stable")
    rows = _rows_at_once(score(pairs.queries[:1]).shape[1])
    for start in range(0, len(order), rows):
        block = order[start : start + rows]
        queries, place = np.unique(pairs.queries[block], return_inverse=True)
        scores = np.array(score(queries))  # a copy: the scorer may hand out a view
        scores[:, 0] = -np.inf
        scores[np.arange(len(queries)), queries] = -np.inf
        if products is not None:
            scores[products[queries][:, None] == products] = -np.inf
        ranks[block] = ranks_of_targets(scores[place], pairs.targets[block])
    return ranks


def _without_products(score: Scorer, held: Holdout, products: NDArray[np.integer[Any]]) -> Scorer:
    """The scorer, with -inf for every item of a product that is in a user's history."""

    def masked(users: NDArray[np.int64]) -> NDArray[np.float32]:
        rows, items = held.history.rows_of(users)
        taken = np.zeros((len(users), int(products.max()) + 1), np.bool_)
        taken[rows, products[items]] = True
        scores = np.array(score(users))
        scores[taken[:, products]] = -np.inf
        return scores

    return masked


def _other_products(held: Holdout, products: NDArray[np.integer[Any]] | None) -> Holdout:
    """Without the users whose target is of a product that they have."""
    if products is None:
        return held
    rows, items = held.history.rows_of(held.users)
    known = np.zeros(len(held.users), np.bool_)
    np.logical_or.at(known, rows, products[items] == products[held.targets[rows]])
    return replace(held, users=held.users[~known], targets=held.targets[~known])


def _sampled_users(log: Interactions, split: Split, settings: VectorEvaluationSettings) -> Bools:
    """Who is measured, bool [U]: everybody, or `max_users` of those who have held-out interactions."""
    users = np.unique(log.users[split.held])
    sample = np.zeros(log.user_count, np.bool_)
    if settings.max_users is None or len(users) <= settings.max_users:
        sample[:] = True
    else:
        sample[np.random.default_rng(settings.seed).choice(users, settings.max_users, replace=False)] = True
    return sample


def _by_user(name: str, users: NDArray[np.int64], values: NDArray[np.float64]) -> Measure:
    """The mean of each user's values."""
    distinct, place = np.unique(users, return_inverse=True)
    return Measure(name, distinct, np.bincount(place, values) / np.bincount(place) if len(users) else values)


def _distinct(log: Interactions, places: NDArray[np.int64], held: Bools) -> Pairs:
    """Pairs of different items from places of query and target [m, 2], where the target is held."""
    query, target = places[held[places[:, 1]]].T
    triples = np.stack([log.users[query], log.items[query], log.items[target]], axis=1).astype(np.int64)
    return Pairs(*np.unique(triples[triples[:, 1] != triples[:, 2]], axis=0).T)


def _rows_at_once(columns: int) -> int:
    return max(LEAST_ROWS, SCORES_AT_ONCE // columns)
