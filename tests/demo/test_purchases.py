"""The log is well formed, and the signal that was planted can be found in it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from numpy.typing import NDArray

from sda_features.demo.catalogue import Catalogue, _draw_factors, make_catalogue
from sda_features.demo.factors import columns_shown_in
from sda_features.demo.purchases import LONGEST, SCHEMA, SHORTEST, make_interactions
from sda_features.errors import SettingsError

from .oracle import (
    cooccurrence_scores,
    factor_scores,
    hit_at_10,
    popularity_scores,
    sequences,
    training_counts,
)

ITEMS, USERS = 600, 1500


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    """The factors of the demo's size without its pictures, which the log does not read."""
    factors = _draw_factors(ITEMS, np.random.default_rng(0))
    return Catalogue(pa.table({}), tuple(f"item-{number:05d}" for number in range(ITEMS)), factors, ())


@pytest.fixture(scope="module")
def log(catalogue: Catalogue) -> pa.Table:
    return make_interactions(catalogue, USERS)


@pytest.fixture(scope="module")
def histories(catalogue: Catalogue, log: pa.Table) -> list[NDArray[np.int64]]:
    return sequences(log, catalogue.item_ids)


@pytest.fixture(scope="module")
def tail(histories: list[NDArray[np.int64]]) -> NDArray[np.bool_]:
    counts = training_counts(histories, ITEMS)
    return np.array([counts[history[-1]] < 4 for history in histories])


def test_the_log_is_ordered_and_each_user_buys_3_to_5_different_items(log: pa.Table) -> None:
    assert log.schema == SCHEMA
    assert pc.all(pc.less_equal(log["timestamp"][:-1], log["timestamp"][1:])).as_py()
    counts = Counter(log["user_id"].to_pylist())
    assert len(counts) == USERS
    assert (min(counts.values()), max(counts.values())) == (SHORTEST, LONGEST)
    for other in ("item_id", "timestamp"):
        assert log.group_by(["user_id", other]).aggregate([]).num_rows == log.num_rows


def test_one_seed_decides_everything(catalogue: Catalogue) -> None:
    first, again, other = (make_interactions(catalogue, 50, seed=seed) for seed in (3, 3, 4))
    assert first.equals(again)
    assert not first.equals(other)


def test_popularity_has_a_long_tail(histories: list[NDArray[np.int64]], tail: NDArray[np.bool_]) -> None:
    counts = np.sort(training_counts(histories, ITEMS))[::-1]
    assert counts[: ITEMS // 10].sum() > 0.25 * counts.sum()
    assert (counts < 4).mean() > 0.1
    assert tail.sum() > 200


def test_content_beats_popularity_and_co_occurrence_by_far(
    catalogue: Catalogue, histories: list[NDArray[np.int64]], tail: NDArray[np.bool_]
) -> None:
    content = factor_scores(catalogue, histories, columns_shown_in("text", "image"))
    together = cooccurrence_scores(histories, ITEMS)
    assert hit_at_10(content, histories) > 2.5 * hit_at_10(popularity_scores(histories, ITEMS), histories)
    assert hit_at_10(content, histories) > 2.5 * hit_at_10(together, histories)
    assert hit_at_10(content, histories, tail) > 0.2
    assert hit_at_10(together, histories, tail) < 0.05


def test_what_both_modalities_show_decides_most(
    catalogue: Catalogue, histories: list[NDArray[np.int64]]
) -> None:
    everything = columns_shown_in("text", "image")
    shared = sorted(set(columns_shown_in("text")) & set(columns_shown_in("image")))
    rest = sorted(set(everything) - set(shared))
    hits = [hit_at_10(factor_scores(catalogue, histories, columns), histories) for columns in (shared, rest)]
    assert hits[0] > 2 * hits[1]


def test_the_last_kind_tells_something_about_the_next(
    catalogue: Catalogue, histories: list[NDArray[np.int64]]
) -> None:
    kinds = catalogue.factors[:, 0]
    moves = np.zeros((2, kinds.max() + 1, kinds.max() + 1))
    for history in histories:
        np.add.at(moves[0], (kinds[history[:-1]], kinds[history[1:]]), 1)
        np.add.at(moves[1], (kinds[history[1:]], kinds[history[:-1]]), 1)  # the same pairs, time reversed
    shares = moves / moves.sum(2, keepdims=True)
    assert np.abs(shares[0] - shares[1]).max() > 0.05  # order matters


def test_too_small_a_shop_is_refused() -> None:
    with pytest.raises(SettingsError, match="at least one user and 7 items, got 0 and 10"):
        make_interactions(make_catalogue(10, spoil=False), 0)
