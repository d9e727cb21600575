import numpy as np
import pytest
import torch

from sda_features.config import RecommenderSettings
from sda_features.errors import SettingsError
from sda_features.logs.interactions import index_interactions
from sda_features.recommenders.bert4rec import BERT4Rec, cloze_mask
from sda_features.recommenders.sasrec import SASRec
from tests.contracts.recommender import ITEMS, RecommenderContract, assert_gradients, small_log
from tests.recommenders.conftest import left_padded, perturbed, variant_of
from tests.reference import bert4rec as reference
from tests.reference.transformer import item_vector

SETTINGS = RecommenderSettings(hidden_dim=6, heads=2, blocks=2, inner_dim=10, max_length=20, dropout=0.0)


class TestContract(RecommenderContract):
    recommender = BERT4Rec


def build(variant="ids", **changes):
    torch.manual_seed(0)
    return perturbed(BERT4Rec(ITEMS, *variant_of(SETTINGS, variant, **changes)), 0.3)


def sequences(lengths):
    """Items of each user, the positions that are masked, and both left-padded."""
    random = np.random.default_rng(0)
    items = [random.integers(1, ITEMS + 1, n).tolist() for n in lengths]
    masked = [(random.random(n) < 0.5).tolist() for n in lengths]
    masked[0][-1] = True
    width = max(lengths)
    padded = {"histories": left_padded(items, width), "masked": left_padded(masked, width).bool()}
    return items, masked, padded


@pytest.mark.parametrize("variant", ["ids", "replace", "join"])
def test_loss_and_gradients_match_the_slow_twin(variant):
    model = build(variant)
    # Lengths on both sides of the group limits 8 and 16, and the longest that there is.
    items, masked, batch = sequences([1, 8, 9, 3, 17, 21])
    assert 0 < batch["masked"].sum() < (batch["histories"] > 0).sum()
    fast, slow = model.loss(batch), reference.loss(model, items, masked)
    torch.testing.assert_close(fast, slow, atol=1e-10, rtol=1e-10)
    assert_gradients(model, fast, slow, atol=1e-9, rtol=1e-7)


def test_float32_is_close_to_the_slow_twin():
    model = build().float()
    items, masked, batch = sequences([4, 12, 20])
    torch.testing.assert_close(model.loss(batch), reference.loss(model, items, masked), atol=1e-5, rtol=1e-5)


def test_a_mask_after_the_history_ranks_the_catalogue():
    model = build().eval()
    items, _, batch = sequences([2, 9, 5, 20])  # the order of the groups is not that of the users
    scores = model.score(torch.arange(4), batch["histories"])
    for row, history in zip(scores, items, strict=True):
        state = reference.sequence_states(model, [*history, reference.MASK])[-1]
        expected = torch.stack([state @ item_vector(model, code) for code in range(ITEMS + 1)])
        torch.testing.assert_close(row, expected, atol=1e-10, rtol=1e-10)
        alone = model.state_after(model.items(torch.tensor(history)))
        torch.testing.assert_close(alone, state, atol=1e-10, rtol=1e-10)


def test_only_the_latest_items_are_read():
    model = build(max_length=4).eval()
    _, _, batch = sequences([9, 6])
    users, longer = torch.arange(2), batch["histories"]
    torch.testing.assert_close(model.user_states(users, longer), model.user_states(users, longer[:, -4:]))
    changed = longer.clone()
    changed[:, -4] = changed[:, -4] % ITEMS + 1
    assert (model.user_states(users, changed) - model.user_states(users, longer)).abs().max() > 1e-4


def test_every_state_sees_both_sides():
    model = build().eval()
    codes = torch.tensor([[3, 5, 7, 9, 11]])
    base = model.loss({"histories": codes, "masked": codes == 7})
    for place in (0, 1, 3, 4):
        changed = codes.clone()
        changed[0, place] = 20
        assert (model.loss({"histories": changed, "masked": codes == 7}) - base).abs() > 1e-6


def test_dropout_acts_in_training_alone():
    model = build(dropout=0.5)
    _, _, batch = sequences([6, 20])
    assert (model.train().loss(batch) - model.loss(batch)).abs() > 1e-3
    model.eval()
    assert torch.equal(model.loss(batch), model.loss(batch))


def test_the_cloze_mask():
    random = np.random.default_rng(0)
    lengths = np.tile([1, 2, 5, 10], 1100)
    real = np.arange(10) >= 10 - lengths[:, None]
    masked = cloze_mask(real, 0.6, random)
    assert not (masked & ~real).any()
    counts = masked.sum(axis=1)
    last_alone = (counts == 1) & masked[:, -1]
    for length, wanted in ((5, 3), (10, 6)):
        own = lengths == length
        assert set(counts[own]) == {1, wanted}  # max(1, round(0.6 n)), or the last one alone
        assert np.array_equal(counts[own] == 1, last_alone[own])
        assert abs(last_alone[own].mean() - 1 / 11) < 0.03
        shares = masked[own & ~last_alone].mean(axis=0)[-length:]
        assert np.abs(shares - 0.6).max() < 0.06
    assert (counts[lengths <= 2] == 1).all()
    low = cloze_mask(real, 0.01, random)
    assert (low.sum(axis=1) == 1).all()


def test_batches_hold_each_user_once():
    log, model = small_log(), build(batch_size=5)
    batches = list(model.batches(log, np.random.default_rng(0)))
    assert [len(batch["histories"]) for batch in batches] == [5, 5, 5, 2]
    found = sorted([code for code in row if code] for batch in batches for row in batch["histories"].tolist())
    assert found == sorted(items.tolist() for items in np.split(log.items, log.offsets[1:-1]))
    assert all((batch["masked"].any(dim=1)).all() for batch in batches)


def test_a_long_history_is_read_through_a_moving_window():
    log = index_interactions(["a"] * 9, [str(item) for item in range(9)])
    model = build(max_length=3)
    random = np.random.default_rng(0)
    batches = [batch for _ in range(60) for batch in model.batches(log, random)]
    windows = {tuple(batch["histories"][0].tolist()) for batch in batches}
    codes = log.items.tolist()
    assert windows == {tuple(codes[start : start + 4]) for start in range(6)}


def test_users_with_one_training_item_are_left_out_of_the_loss():
    log = index_interactions(["a", "b", "b"], ["x", "x", "y"], catalogue=["x", "y", "z"])
    (batch,) = build().batches(log, np.random.default_rng(0))
    assert batch["histories"].shape == (1, 2)


@pytest.mark.parametrize("model", [BERT4Rec, SASRec])
def test_heads_must_divide_the_width(model):
    with pytest.raises(SettingsError, match="hidden_dim 50 does not split over 3 heads"):
        model(ITEMS, RecommenderSettings(heads=3), None)
