"""Uniform draws from the items that a user has not seen: exact, vectorised, without rejection.

The unseen items of a user, in code order, are numbered 0..A-1. A draw is a draw of such numbers,
and one binary search turns a number into the item.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sda_features.errors import RankingError
from sda_features.logs.interactions import Interactions

Integers = NDArray[np.integer[Any]]


class UnseenItems:
    """The items 1..I of each user that do not occur in the user's row of a log.

    Attributes:
        counts: int64 [U], unseen items A_u of each user.
    """

    def __init__(self, seen: Interactions, *, among: NDArray[np.bool_] | None = None) -> None:
        """Index a log; with `among`, bool [I + 1], only the items that it marks are drawn."""
        candidates = np.ones(seen.item_count + 1, np.bool_) if among is None else among.copy()
        candidates[0] = True  # padding keeps its place, number 0
        self._codes = np.flatnonzero(candidates).astype(np.int32)
        place, kept = np.cumsum(candidates) - 1, candidates[seen.items]
        self._stride = len(self._codes)
        pairs = np.sort(seen.users[kept] * self._stride + place[seen.items[kept]])
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]  # np.unique hashes first, at 15 times the cost
        users, items = np.divmod(pairs, self._stride)
        distinct = np.bincount(users, minlength=seen.user_count)
        self._starts = np.cumsum(distinct) - distinct
        # The j-th seen item s_j of a user (j from 0) has s_j - 1 - j unseen items before it.
        place = np.arange(len(pairs)) - self._starts[users]
        self._unseen_before = users * self._stride + items - 1 - place
        self.counts = len(self._codes) - 1 - distinct

    @classmethod
    def of_training(cls, train: Interactions) -> Self:
        """Unseen items that occur in `train`; where a user took all of those, unseen items of the catalogue.

        An item that occurs later only is no negative: a model trained against it learns to hide it.
        """
        trained = cls(train, among=train.item_counts > 0)
        return trained if trained.counts.min(initial=1) > 0 else cls(train)

    def numbered(self, users: Integers, numbers: Integers) -> NDArray[np.int32]:
        """Unseen item number `numbers` of `users`, both [n] or broadcastable; numbers in 0..A_u - 1.

        Of all items the one with number m has code m + 1 + |{j : s_j - 1 - j <= m}|.
        """
        found = np.searchsorted(self._unseen_before, users * self._stride + numbers, side="right")
        return self._codes[numbers + 1 + found - self._starts[users]]

    def draw(self, users: Integers, random: np.random.Generator) -> NDArray[np.int32]:
        """One uniform unseen item for each entry of `users` [n]."""
        self._require(users, 1)
        return self.numbered(users, random.integers(0, self.counts[users]))

    def draw_distinct(self, users: Integers, size: int, random: np.random.Generator) -> NDArray[np.int32]:
        """A uniform set of `size` unseen items for each user, int32 [n, size].

        Floyd's algorithm (Bentley and Floyd 1987), one step for all users at a time: for
        j = A - size .. A - 1 draw t from 0..j and take t, or j when t is taken already.

        Raises:
            RankingError: a user has fewer than `size` unseen items.
        """
        self._require(users, size)
        numbers = np.empty((len(users), size), dtype=np.int64)
        for step in range(size):
            newest = self.counts[users] - size + step
            drawn = random.integers(0, newest + 1)
            taken = (numbers[:, :step] == drawn[:, None]).any(axis=1)
            numbers[:, step] = np.where(taken, newest, drawn)
        return self.numbered(users[:, None], numbers)

    def _require(self, users: Integers, size: int) -> None:
        least = int(self.counts[users].min(initial=size))
        if least < size:
            raise RankingError(
                f"Expected at least {size} unseen items for each user, but one user has {least} left. "
                f"Draw at most {least} negatives, or add catalogue items without interactions."
            )
