import numpy as np
import pytest
import torch

from sda_features.config import RecommenderSettings
from sda_features.recommenders.features import prepare_vectors
from sda_features.recommenders.slmrec import SLMRec
from tests.contracts.recommender import ITEMS, USERS, RecommenderContract, small_log
from tests.reference import slmrec as reference

SETTINGS = RecommenderSettings(
    hidden_dim=5, batch_size=7, ssl_weight=0.6, temperature=0.3, ssl_temperature=0.5
)
TASKS = ("fd", "fm", "fac", "fd+fm")


class TestContract(RecommenderContract):
    recommender = SLMRec


class TestContractOfViews(RecommenderContract):
    recommender = SLMRec
    settings = RecommenderContract.settings.model_copy(update={"ssl_task": "fd+fm", "graph_layers": 2})


def two_modalities(seed=0):
    """Text first, as a caller may give them; code 4 lacks its text, code 9 both."""
    random = np.random.default_rng(seed)
    vectors = {name: random.normal(20, 1, (ITEMS + 1, dim)) for name, dim in (("text", 6), ("image", 4))}
    for matrix in vectors.values():
        matrix[[0, 9]] = 0
    vectors["text"][4] = 0
    return prepare_vectors(vectors, ITEMS)


def build(seed=0, **changes):
    """A model in float64 with biases away from zero, and its vectors in the order of its modalities."""
    settings = SETTINGS.model_copy(update=changes)
    vectors = None if changes.get("fusion") == "ids" else two_modalities()
    torch.manual_seed(seed)
    model = SLMRec(small_log(), settings, vectors).double()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    if model.items.ids is not None:
        model.items.ids.weight.data[0] = 0
    if vectors is None:
        return model, {}
    values = torch.from_numpy(vectors.values).double()
    return model, {"image": values[:, 6:], "text": values[:, :6]}


@pytest.mark.parametrize(
    ("task", "fusion", "layers"),
    [
        *((task, "join", 3) for task in TASKS),
        *((task, "replace", 2) for task in TASKS),
        ("fd+fm", "ids", 3),
        ("fac", "ids", 4),
        ("fd+fm", "join", 1),
    ],
)
def test_loss_and_gradients_match_the_slow_twin(task, fusion, layers):
    model, raw = build(ssl_task=task, fusion=fusion, graph_layers=layers)
    log = small_log()
    chosen = np.random.default_rng(1).permutation(len(log.items))[:11]
    pairs = [(int(log.users[k]), int(log.items[k])) for k in chosen]
    assert len({item for _, item in pairs}) < len(pairs)  # an item occurs twice
    users, items = (torch.tensor(column) for column in zip(*pairs, strict=True))
    torch.manual_seed(5)
    factors = model.view_factors(torch.device("cpu"))
    torch.manual_seed(5)
    fast = model.loss({"users": users, "items": items})
    main, ssl = reference.loss(model, log, raw, pairs, factors)
    contrasts = fusion != "ids" or task == "fd+fm"
    assert (float(ssl.detach()) > 0.1) == contrasts
    torch.testing.assert_close(fast, main + ssl, atol=1e-6, rtol=1e-6)
    parameters = list(model.parameters())
    ours, theirs = torch.autograd.grad(fast, parameters), torch.autograd.grad(main + ssl, parameters)
    for (name, parameter), gradient, expected in zip(model.named_parameters(), ours, theirs, strict=True):
        assert expected.abs().max() > 1e-4, name
        if parameter is getattr(model.items.ids, "weight", None):
            assert not expected[0].any()  # padding has no links
        torch.testing.assert_close(
            gradient, expected, atol=1e-6, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_scores_are_cosines_of_the_slow_twins_rows():
    model, raw = build()
    log = small_log()
    scores = model.scorer(log)(np.arange(USERS))
    with torch.no_grad():
        means = reference.propagate(model, reference.adjacency(log), reference.layer_zero(model, raw))
        users = torch.stack([reference.fuse(model.user_fusion, means, row) for row in range(USERS)])
        items = torch.stack(
            [reference.fuse(model.item_fusion, means, USERS + code) for code in range(ITEMS + 1)]
        )
        expected = torch.cosine_similarity(users[:, None], items[None], dim=2)
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-6)
    assert np.ptp(scores, axis=1).min() > 0.1
