import numpy as np
import pytest
import torch

from sda_features.config import RecommenderSettings
from sda_features.logs.interactions import index_interactions
from sda_features.recommenders.sasrec import SASRec
from tests.contracts.recommender import ITEMS, RecommenderContract, assert_gradients, small_log
from tests.recommenders.conftest import left_padded, perturbed, variant_of
from tests.reference import sasrec as reference
from tests.reference.transformer import item_vector

SETTINGS = RecommenderSettings(hidden_dim=6, heads=2, blocks=2, max_length=21, dropout=0.0)


class TestContract(RecommenderContract):
    recommender = SASRec


class TestContractWithSoftmax(RecommenderContract):
    recommender = SASRec
    settings = RecommenderContract.settings.model_copy(update={"loss": "ce"})


def build(variant="ids", **changes):
    torch.manual_seed(0)
    return perturbed(SASRec(ITEMS, *variant_of(SETTINGS, variant, **changes)), 0.1)


def batch_of(lengths, width):
    random = np.random.default_rng(0)
    lists = [[random.integers(1, ITEMS + 1, n).tolist() for n in lengths] for _ in range(3)]
    padded = [left_padded(rows, width) for rows in lists]
    return lists, dict(zip(("histories", "targets", "negatives"), padded, strict=True))


@pytest.mark.parametrize("loss", ["bce", "ce"])
@pytest.mark.parametrize("variant", ["ids", "replace", "join"])
def test_loss_and_gradients_match_the_slow_twin(loss, variant):
    model = build(variant, loss=loss)
    # Lengths on both sides of the group limits 8 and 16, and a width that is neither.
    lists, batch = batch_of([1, 8, 9, 3, 17, 5], width=19)
    fast, slow = model.loss(batch), reference.loss(model, *lists)
    torch.testing.assert_close(fast, slow, atol=1e-10, rtol=1e-10)
    assert_gradients(model, fast, slow, atol=1e-9, rtol=1e-7)


def test_float32_is_close_to_the_slow_twin():
    model = build().float()
    lists, batch = batch_of([4, 12, 20], width=20)
    torch.testing.assert_close(model.loss(batch), reference.loss(model, *lists), atol=1e-5, rtol=1e-5)


def test_the_last_state_ranks_the_catalogue():
    model = build().eval()
    lists, batch = batch_of([2, 9], width=9)
    scores = model.score(torch.arange(2), batch["histories"])
    for row, items in zip(scores, lists[0], strict=True):
        state = reference.sequence_states(model, items)[-1]
        expected = torch.stack([state @ item_vector(model, code) for code in range(ITEMS + 1)])
        torch.testing.assert_close(row, expected, atol=1e-10, rtol=1e-10)


def test_the_future_does_not_reach_the_past():
    model = build().eval()
    _, batch = batch_of([12, 20, 5], width=20)
    before = model.states(batch["histories"])
    changed = batch["histories"].clone()
    changed[:, -3] = changed[:, -3] % ITEMS + 1
    after = model.states(changed)
    torch.testing.assert_close(after[:, :-3], before[:, :-3], atol=0, rtol=0)
    assert (after[:, -3:] - before[:, -3:]).abs().amin(dim=(1, 2)).min() > 0  # and it does reach the future


def test_padding_does_not_change_the_states():
    model = build().eval()
    _, batch = batch_of([3, 7], width=7)
    wider = torch.cat([torch.zeros(2, 11, dtype=torch.int64), batch["histories"]], dim=1)
    narrow, wide = model.states(batch["histories"]), model.states(wider)
    torch.testing.assert_close(wide[:, 11:], narrow)
    assert wide[:, :11].abs().max() == 0


def test_dropout_acts_in_training_alone():
    model = build(dropout=0.5)
    _, batch = batch_of([6, 20], width=20)
    first, second = model.train().states(batch["histories"]), model.states(batch["histories"])
    assert (first - second).abs().max() > 0.1
    model.eval()
    assert torch.equal(model.states(batch["histories"]), model.states(batch["histories"]))


def test_batches_hold_each_user_once_with_the_next_item_as_target():
    log = small_log()
    model = build(batch_size=5, max_length=6)
    batches = list(model.batches(log, np.random.default_rng(0)))
    assert [len(batch["histories"]) for batch in batches] == [5, 5, 5, 2]
    own = {tuple(items[-7:].tolist()): items for items in np.split(log.items, log.offsets[1:-1])}
    for batch in batches:
        for history, target, negative in zip(*(rows.tolist() for rows in batch.values()), strict=True):
            real = [code for code in history if code]
            assert history == [0] * (len(history) - len(real)) + real
            wanted = target[-len(real) :]
            taken = own.pop((real[0], *wanted))
            assert real[1:] == wanted[:-1]
            assert np.array_equal(np.sign(history), np.sign(target))
            assert np.array_equal(np.sign(history), np.sign(negative))
            assert not set(negative) & set(taken.tolist())
    assert not own


def test_users_with_one_training_item_are_left_out_of_the_loss():
    log = index_interactions(["a", "b", "b"], ["x", "x", "y"], catalogue=["x", "y", "z"])
    (batch,) = build().batches(log, np.random.default_rng(0))
    assert batch["histories"].shape == (1, 1)
