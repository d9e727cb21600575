from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sda_features.errors import RankingError
from sda_features.evaluation.negatives import UnseenItems
from sda_features.logs.interactions import index_interactions

CATALOGUE = [f"i{n}" for n in range(9)]


def taken(log):
    """The items of each user."""
    return [set(items.tolist()) for items in np.split(log.items, log.offsets[1:-1])]


def log(rows):
    users, items = zip(*rows, strict=True)
    return index_interactions(users, [CATALOGUE[item] for item in items], catalogue=CATALOGUE)


ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7)), min_size=1, max_size=40)


@given(ROWS)
def test_numbers_enumerate_the_unseen_items(rows):
    seen = log(rows)
    unseen = UnseenItems(seen)
    for user, own in enumerate(taken(seen)):
        expected = [code for code in range(1, 10) if code not in own]
        assert unseen.counts[user] == len(expected)
        found = unseen.numbered(np.full(len(expected), user), np.arange(len(expected)))
        assert found.tolist() == expected


@given(ROWS, st.integers(0, 3))
def test_drawn_sets_are_distinct_and_unseen(rows, seed):
    seen = log(rows)
    unseen = UnseenItems(seen)
    users = np.arange(seen.user_count)
    size = int(unseen.counts.min())  # the hardest case: one user gets all that is left
    drawn = unseen.draw_distinct(users, size, np.random.default_rng(seed))
    assert drawn.shape == (len(users), size)
    for own, row in zip(taken(seen), map(set, drawn.tolist()), strict=True):
        assert len(row) == size
        assert not own & row
        assert row <= set(range(1, 10))


def test_draws_are_uniform():
    seen = log([(0, 0), (0, 4), (0, 4), (0, 8)])  # 6 unseen items
    users = np.zeros(30_000, dtype=int)
    random = np.random.default_rng(0)
    pairs = [tuple(sorted(row)) for row in UnseenItems(seen).draw_distinct(users, 2, random).tolist()]
    expected = list(combinations([2, 3, 4, 6, 7, 8], 2))
    assert set(pairs) == set(expected)
    counts = np.array([pairs.count(pair) for pair in expected])
    # 15 equally likely sets: chi-squared with 14 degrees of freedom, 99.99 % below 42.6
    assert ((counts - 2000) ** 2 / 2000).sum() < 42.6
    single = np.bincount(UnseenItems(seen).draw(users, random), minlength=10)
    assert single[[0, 1, 5, 9]].tolist() == [0] * 4
    assert ((single[[2, 3, 4, 6, 7, 8]] - 5000) ** 2 / 5000).sum() < 25.7  # 5 degrees of freedom


def test_too_few_unseen_items_raise():
    unseen = UnseenItems(log([(0, item) for item in range(9)]))
    with pytest.raises(RankingError, match=r"at least 1 unseen items .* one user has 0 left"):
        unseen.draw(np.array([0]), np.random.default_rng(0))
    with pytest.raises(RankingError, match="at least 5 unseen items"):
        unseen.draw_distinct(np.array([0]), 5, np.random.default_rng(0))


@given(seed=st.integers(0, 10**6))
@example(seed=319)  # a user who took all that is trained
def test_items_that_training_lacks_are_never_drawn(seed):
    random = np.random.default_rng(seed)
    log = index_interactions(
        random.integers(5, size=30), random.integers(8, 20, size=30), catalogue=range(25)
    )
    trained = np.flatnonzero(log.item_counts)
    unseen = UnseenItems.of_training(log)
    if any(own.issuperset(trained.tolist()) for own in taken(log)):  # then all are drawn from the catalogue
        trained = np.arange(1, log.item_count + 1)
    for user, own in enumerate(taken(log)):
        left = [item for item in trained.tolist() if item not in own]
        assert unseen.counts[user] == len(left)
        users = np.full(len(left), user)
        assert unseen.numbered(users, np.arange(len(left))).tolist() == left


def test_a_user_who_took_all_that_is_trained_gets_negatives_of_the_catalogue():
    log = index_interactions(["u", "u"], ["a", "b"], catalogue=["a", "b", "c"])
    assert set(UnseenItems.of_training(log).draw(np.zeros(9, int), np.random.default_rng(0)).tolist()) == {3}
