"""What of a log is learned from and what is predicted: leave-one-out, a split by time, and one by cold items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sda_features.config import EvaluationSettings
from sda_features.errors import InteractionsError
from sda_features.logs.interactions import Interactions


@dataclass(frozen=True, eq=False)
class Holdout:
    """One item to predict for each evaluated user.

    Attributes:
        name: "validation" or "test".
        history: what is known when the prediction is made.
        users: int64 [T] user indices.
        targets: int32 [T] item codes.
    """

    name: str
    history: Interactions
    users: NDArray[np.int64]
    targets: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Split:
    """What is learned from and what is predicted; made by `leave_one_out`, `temporal_split` or `cold_split`.

    Attributes:
        interactions: everything.
        train: what a recommender may learn from.
        validation: history = `train`.
        test: history = what was known before the test.
        short_users: users whom the test leaves out.
        held: bool [n], the interactions that may be targets of the test; no training or history holds them.
    """

    interactions: Interactions
    train: Interactions
    validation: Holdout
    test: Holdout
    short_users: int
    held: NDArray[np.bool_]


def split_interactions(interactions: Interactions, settings: EvaluationSettings) -> Split:
    """`leave_one_out`, `temporal_split` or `cold_split`, whichever the protocol names."""
    if settings.split == "leave-one-out":
        return leave_one_out(interactions)
    if settings.split == "cold":
        return cold_split(interactions, share=settings.cold_share)
    return temporal_split(
        interactions, validation_from=settings.validation_from, test_from=settings.test_from
    )


def leave_one_out(interactions: Interactions) -> Split:
    """Each user's last item is the test, the one before it the validation, the rest is for training.

    The history of the test holds the validation item. Users with fewer than 3 interactions have all
    of theirs in training and are not evaluated.

    Raises:
        InteractionsError: nobody has 3 interactions.
    """
    evaluated = interactions.lengths >= 3
    users = np.flatnonzero(evaluated)
    if not len(users):
        raise InteractionsError(
            "Leave-one-out needs users with at least 3 interactions (train, validation, test); "
            f"the longest of {interactions.user_count} users has {interactions.lengths.max(initial=0)}. "
            "Give a longer log."
        )
    train = interactions.without_last(2 * evaluated)
    before_test = interactions.without_last(1 * evaluated)
    last = interactions.offsets[users + 1] - 1
    return Split(
        interactions=interactions,
        train=train,
        validation=Holdout("validation", train, users, interactions.items[last - 1]),
        test=Holdout("test", before_test, users, interactions.items[last]),
        short_users=int((~evaluated).sum()),
        held=np.isin(np.arange(len(interactions.items)), last),
    )


def temporal_split(interactions: Interactions, *, validation_from: float, test_from: float) -> Split:
    """Two instants for everybody, so that nothing is learned from what happened after a prediction.

    Training is what came before the first instant. The validation item of a user is the first one from
    then on, given the training; the test item the first one from the second instant on, given all
    before that instant. Users without training interactions are not evaluated. What happens at one
    instant stays together. Items that first appear after training are ranked like all others.

    Args:
        interactions: with `times`.
        validation_from: share of interactions before the first instant, up to equal times.
        test_from: before the second.

    Raises:
        InteractionsError: no times, or nobody to evaluate.
    """
    times = interactions.times
    if times is None:
        raise InteractionsError(
            "A temporal split needs a column of timestamps; this log gives each user's order alone. "
            "Name the column, or split leave-one-out."
        )
    ordered = np.sort(times)
    starts = [ordered[int(share * len(ordered))] for share in (validation_from, test_from)]
    train = interactions.where(times < starts[0])
    before_test = interactions.where(times < starts[1])
    validation = _first_items(
        "validation", train, interactions, train, (times >= starts[0]) & (times < starts[1])
    )
    test = _first_items("test", before_test, interactions, train, times >= starts[1])
    for held in (validation, test):
        if not len(held.users):
            raise InteractionsError(
                f"Nobody has training interactions and a later {held.name} item: training ends with "
                f"{len(train.items)} of {len(times)} interactions, at {starts[0]}, and the test begins at "
                f"{starts[1]}. Choose other shares, or split leave-one-out."
            )
    short = interactions.user_count - len(test.users)
    return Split(interactions, train, validation, test, short, held=times >= starts[1])


def cold_split(interactions: Interactions, *, share: float) -> Split:
    """A share of the items is taken out of training, to be the targets of the test.

    The test item of a user is the last of these cold items that they took, given the other items
    before it; the validation item is the last of those, and the ones before that are for training.
    Later interactions of the user are left out. Who took no cold item, or fewer than two others before it,
    has the other items in training and is not evaluated. The draw of items is the same for every run.

    Raises:
        InteractionsError: nobody to evaluate.
    """
    taken = np.flatnonzero(interactions.item_counts)
    cold = np.zeros(interactions.item_count + 1, np.bool_)
    cold[np.random.default_rng(0).choice(taken, round(share * len(taken)), replace=False)] = True
    is_cold, place = cold[interactions.items], np.arange(len(interactions.items))
    last = np.full(interactions.user_count, -1)
    np.maximum.at(last, interactions.users[is_cold], place[is_cold])
    before = ~is_cold & (place < last[interactions.users])
    counts = np.bincount(interactions.users[before], minlength=interactions.user_count)
    evaluated = counts >= 2
    users = np.flatnonzero(evaluated)
    if not len(users):
        raise InteractionsError(
            f"Nobody took one of {cold.sum()} items that a share of {share} takes out of training after two "
            "others. Choose another share, or split leave-one-out."
        )
    history = interactions.where(np.where(evaluated[interactions.users], before, ~is_cold))
    train = history.without_last(1 * evaluated)
    return Split(
        interactions=interactions,
        train=train,
        validation=Holdout("validation", train, users, history.items[history.offsets[users + 1] - 1]),
        test=Holdout("test", history, users, interactions.items[last[users]]),
        short_users=int((~evaluated).sum()),
        held=is_cold,
    )


def _first_items(
    name: str, history: Interactions, log: Interactions, train: Interactions, window: NDArray[np.bool_]
) -> Holdout:
    """The first item in `window` [n] of each user whom `train` knows."""
    users, first = np.unique(log.users[window], return_index=True)
    known = train.lengths[users] > 0
    return Holdout(name, history, users[known], log.items[window][first[known]])
