"""What every recommender must do; a test module subclasses this with the class under test."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from sda_features.config import RecommenderSettings
from sda_features.logs.interactions import index_interactions
from sda_features.recommenders.base import Recommender
from sda_features.recommenders.representations import prepare_vectors

ITEMS, USERS = 23, 17


def small_log(seed=0):
    """Users with 2 to 9 items; items 0 and 1 are never taken."""
    random = np.random.default_rng(seed)
    rows = [(u, random.integers(2, ITEMS)) for u in range(USERS) for _ in range(random.integers(2, 10))]
    return index_interactions(*zip(*rows, strict=True), catalogue=[str(item) for item in range(ITEMS)])


def small_vectors(seed=0, dim=6):
    """Like a language model's: long, with a large common mean; item code 3 has none."""
    vectors = np.random.default_rng(seed).normal(20, 1, (ITEMS + 1, dim)).astype(np.float32)
    vectors[[0, 3]] = 0
    return prepare_vectors({"text": vectors}, ITEMS)


def assert_gradients(model, fast, slow, *, atol, rtol, least=0):
    """Both losses have one gradient in every parameter, larger than `least`; that of padding does not count."""
    parameters = dict(model.named_parameters())
    gradients = [torch.autograd.grad(x, [*parameters.values()], retain_graph=True) for x in (fast, slow)]
    for name, ours, theirs in zip(parameters, *gradients, strict=True):
        assert theirs.abs().max() > least, name
        if name == "items.ids.weight":
            theirs[0] = 0
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=rtol, msg=f"{name}: {{}}".format)


class RecommenderContract:
    """Set `recommender`; the settings below are small enough for any model."""

    recommender: type[Recommender]
    settings = RecommenderSettings(hidden_dim=8, heads=2, max_length=6, batch_size=5, dropout=0.3, threads=1)

    @pytest.fixture(params=["ids", "replace", "join"])
    def variant(self, request):
        """Settings and vectors of the three ways to represent an item."""
        if request.param == "ids":
            return self.settings, None
        return self.settings.model_copy(update={"fusion": request.param}), small_vectors()

    def build(self, variant, seed=0, **changes):
        settings, vectors = variant
        torch.manual_seed(seed)
        return self.recommender.build(small_log(), settings.model_copy(update=changes), vectors)

    def batches(self, model, seed=0):
        return list(model.batches(small_log(), np.random.default_rng(seed)))

    def scores(self, model):
        return model.scorer(small_log())(np.arange(USERS))

    def histories(self):
        return torch.from_numpy(small_log().recent(np.arange(USERS), self.settings.max_length)).long()

    def test_a_score_is_one_product(self, variant):
        model, users = self.build(variant).eval(), torch.arange(USERS)
        scores = model.score(users, self.histories())
        assert scores.shape == (USERS, ITEMS + 1)
        assert scores.dtype == torch.float32
        assert torch.isfinite(scores).all()
        product = model.user_states(users, self.histories()) @ model.item_table().T
        torch.testing.assert_close(scores, product)
        np.testing.assert_allclose(self.scores(model), scores.detach().numpy(), atol=1e-6)

    def test_states_are_the_left_factor_of_the_scorer(self, variant):
        model, users = self.build(variant), np.arange(USERS)[::-1].copy()
        states = model.states_after(small_log(), users, batch=5)
        assert states.dtype == np.float32
        scores = states @ model.item_table().detach().numpy().T
        np.testing.assert_allclose(scores, model.scorer(small_log())(users), atol=1e-5)

    def test_scoring_ignores_dropout_batch_and_padding(self, variant):
        model = self.build(variant)
        score = model.scorer(small_log())
        whole = score(np.arange(USERS))
        np.testing.assert_array_equal(score(np.arange(USERS)), whole)
        alone = [model.scorer(small_log(), user)(user) for user in np.arange(USERS)[:, None]]
        np.testing.assert_allclose(np.concatenate(alone), whole, atol=1e-5)
        short = self.histories()[:, -3:]
        padded = torch.cat([torch.zeros(USERS, 3, dtype=torch.int64), short], dim=1)
        users = torch.arange(USERS)
        torch.testing.assert_close(model.score(users, padded), model.score(users, short))

    def test_somebody_without_history_gets_finite_scores(self, variant):
        model = self.build(variant).eval()
        assert torch.isfinite(model.score(torch.tensor([0]), torch.zeros(1, 4, dtype=torch.int64))).all()

    def test_every_parameter_learns(self, variant):
        model = self.build(variant).train()
        for batch in self.batches(model):
            loss = model.loss(batch)
            assert loss.shape == ()
            assert torch.isfinite(loss)
            loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().max() > 0, name

    def test_steps_lower_the_loss(self, variant):
        model = self.build(variant, dropout=0.0)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        losses = []
        for _ in range(20):
            batches = self.batches(model)
            total = sum(model.loss(batch) for batch in batches) / len(batches)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            losses.append(float(total.detach()))
        assert losses[-1] < losses[0] - 0.05

    def test_seeds_decide_weights_and_batches(self, variant):
        first, same, other = (self.build(variant, seed).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(first[name], same[name]) for name in first)
        assert not all(torch.equal(first[name], other[name]) for name in first)
        model = self.build(variant)

        def content(seed):
            return [tensor.tolist() for batch in self.batches(model, seed) for tensor in batch.values()]

        assert content(0) == content(0) != content(1)

    def test_weights_round_trip(self, variant):
        model, fresh = self.build(variant, seed=0), self.build(variant, seed=1)
        fresh.load_state_dict(load(save({k: v.contiguous() for k, v in model.state_dict().items()})))
        np.testing.assert_array_equal(self.scores(fresh), self.scores(model))

    def test_items_without_training_are_never_trained_against(self, variant):
        """Codes 1 and 2: their vectors change neither a loss nor a gradient, and their id rows stay zero."""
        _, vectors = variant
        model = self.build(variant, dropout=0.0, id_dropout=0.3).train()
        others = model
        if vectors is not None:
            values = vectors.values.copy()
            values[[1, 2]] *= -3
            others = self.build((model.settings, replace(vectors, values=values))).train()
        gradients = []
        for each in (model, others):
            torch.manual_seed(5)
            total = sum(map(each.loss, self.batches(each)))
            total.backward()
            gradients.append([total.detach(), *(p.grad.clone() for p in each.parameters())])
            each.zero_grad()
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs)
        # Without a vector nothing tells one such item from the other; with vectors they are ranked by them.
        table = model.eval().item_table()
        assert torch.equal(table[1], table[2]) == (vectors is None)

    def test_dropped_ids_change_training_alone(self, variant):
        settings, vectors = variant
        model = self.build(variant, dropout=0.0, id_dropout=0.9, ssl_weight=0.0)
        batch = self.batches(model)[0]
        model.train()
        torch.manual_seed(1)
        losses = {model.loss(batch).item() for _ in range(5)}
        self_supervised_alone = vectors is None or settings.fusion == "replace"
        assert (len(losses) == 1) == self_supervised_alone
        whole = self.build((model.settings, vectors), id_dropout=0.0)
        np.testing.assert_array_equal(self.scores(model), self.scores(whole))

    def test_what_maps_vectors_is_told_from_the_rest(self, variant):
        model = self.build(variant)
        own, adapter = {id(p) for p in model.parameters()}, {id(p) for p in model.adapter_parameters()}
        assert adapter < own
        assert bool(adapter) == (variant[1] is not None)
