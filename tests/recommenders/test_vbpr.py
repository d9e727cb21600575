from itertools import product

import numpy as np
import pytest
import torch

from sda_features.config import RecommenderSettings
from sda_features.errors import RankingError
from sda_features.logs.interactions import index_interactions
from sda_features.recommenders.vbpr import VBPR
from tests.contracts.recommender import ITEMS, USERS, RecommenderContract, assert_gradients, small_log
from tests.recommenders.conftest import variant_of
from tests.reference import vbpr as reference

SETTINGS = RecommenderSettings(hidden_dim=5, batch_size=32, l2=0.03)
VARIANTS = ["ids", "replace", "join"]


class TestContract(RecommenderContract):
    recommender = VBPR


def build(variant="join", **changes):
    torch.manual_seed(0)
    model = VBPR(USERS, ITEMS, *variant_of(SETTINGS, variant, **changes)).double()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter)
    return model


def triples(count=29):
    """Random (user, taken, other); some repeat a user or an item, the last has one item on both sides."""
    random = np.random.default_rng(0)
    rows = np.stack([random.integers(0, USERS, count), *random.integers(1, ITEMS + 1, (2, count))], axis=1)
    rows[-1, 2] = rows[-1, 1]
    batch = dict(zip(("users", "positives", "negatives"), torch.from_numpy(rows.T.copy()), strict=True))
    return [tuple(row) for row in rows.tolist()], batch


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_match_the_slow_twin(variant):
    model = build(variant).eval()
    scores = model.score(torch.arange(USERS), torch.zeros(USERS, 1, dtype=torch.int64))
    pairs = product(range(USERS), range(1, ITEMS + 1))
    expected = torch.stack([reference.score(model, *pair) for pair in pairs]).view(USERS, ITEMS)
    assert expected.std() > 0.1
    torch.testing.assert_close(scores[:, 1:], expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients_match_the_slow_twin(variant):
    model, (rows, batch) = build(variant), triples()
    fast, slow = model.loss(batch), reference.loss(model, rows)
    torch.testing.assert_close(fast, slow, atol=1e-12, rtol=1e-12)
    assert_gradients(model, fast, slow, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize(
    ("variant", "shapes"),
    [
        ("ids", {"user_factors": (USERS, 5), "item_factors": (ITEMS + 1, 6)}),
        ("replace", {"user_factors": (USERS, 5), "projection": (6, 7)}),
        ("join", {"user_factors": (USERS, 10), "item_factors": (ITEMS + 1, 6), "projection": (6, 7)}),
    ],
)
def test_each_variant_has_the_parameters_of_its_formula(variant, shapes):
    assert {name: parameter.shape for name, parameter in build(variant).named_parameters()} == shapes


def test_an_item_without_a_vector_is_ranked_by_its_factors():
    model = build("join")
    table = model.item_table()
    assert not table[3, 5:10].any()  # E f: item code 3 has no vector
    torch.testing.assert_close(table[3, 10], model.item_factors[3, 5])


def test_the_penalty_is_that_of_the_settings():
    _, batch = triples()
    losses = {l2: build(l2=l2).loss(batch) for l2 in (0, 0.1, 0.2)}
    assert losses[0.1] > losses[0]
    torch.testing.assert_close(losses[0.2] - losses[0.1], losses[0.1] - losses[0])


def test_a_pass_holds_each_interaction_once_against_an_unseen_item():
    log, model = small_log(), build()
    batches = list(model.batches(log, np.random.default_rng(0)))
    sizes = [len(batch["users"]) for batch in batches]
    assert sum(sizes) == len(log.items)
    assert set(sizes[:-1]) == {32}
    users, positives, negatives = (
        torch.cat([batch[name] for batch in batches]).numpy() for name in ("users", "positives", "negatives")
    )
    assert sorted(zip(users, positives, strict=True)) == sorted(zip(log.users, log.items, strict=True))
    assert not np.array_equal(users, log.users)
    seen = set(zip(log.users, log.items, strict=True))
    assert not seen & set(zip(users, negatives, strict=True))
    assert negatives.min() >= 1


def test_negatives_are_uniform_over_the_unseen():
    log = index_interactions(["a"] * 3, ["x", "y", "x"], catalogue=["x", "y", "p", "q", "r"])
    model, random = build(), np.random.default_rng(0)
    drawn = torch.cat([batch["negatives"] for _ in range(1000) for batch in model.batches(log, random)])
    counts = np.bincount(drawn.numpy(), minlength=6)
    assert counts[:3].tolist() == [0, 0, 0]
    assert np.abs(counts[3:] / 1000 - 1).max() < 0.1  # five standard deviations are .13


def test_somebody_who_took_everything_leaves_no_negative():
    log = index_interactions(["a", "a"], ["x", "y"])
    with pytest.raises(RankingError, match="at least 1 unseen item"):
        next(build().batches(log, np.random.default_rng(0)))
