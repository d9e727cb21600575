import numpy as np
import pytest
import torch

from sda_features.config import RecommenderSettings
from sda_features.logs.interactions import index_interactions
from sda_features.recommenders.lightgcn import BipartiteGraph
from sda_features.recommenders.representations import prepare_vectors
from sda_features.recommenders.slmrec import FineAndCoarse, SLMRec, feature_dropout, feature_masks, info_nce
from tests.contracts.recommender import ITEMS, USERS, RecommenderContract, assert_gradients, small_log
from tests.recommenders.conftest import NO_TEXT, NO_VECTOR, perturbed, raw_vectors
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


def build(**changes):
    """A model, and its vectors in the order of its modalities."""
    vectors = None if changes.get("fusion") == "ids" else prepare_vectors(raw_vectors(), ITEMS)
    torch.manual_seed(0)
    model = perturbed(SLMRec(small_log(), SETTINGS.model_copy(update=changes), vectors), 0.2)
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
    assert_gradients(model, fast, main + ssl, atol=1e-6, rtol=1e-5, least=1e-4)
    if model.items.ids is not None:
        (padding,) = torch.autograd.grad(main + ssl, [model.items.ids.weight])
        assert not padding[0].any()  # it has no links


def test_scores_are_products_of_the_slow_twins_rows():
    model, raw = build()
    log = small_log()
    scores = model.scorer(log)(np.arange(USERS))
    with torch.no_grad():
        means = reference.propagate(model, reference.adjacency(log), reference.layer_zero(model, raw))
        users = torch.stack([reference.fuse(model.user_fusion, means, row) for row in range(USERS)])
        rows = range(USERS, USERS + ITEMS + 1)
        items = torch.stack([reference.fuse(model.item_fusion, means, row) for row in rows])
        expected = users @ items.T
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-6)
    assert np.ptp(scores, axis=1).min() > 0.1
    some = np.array([4, 0, 16])
    np.testing.assert_allclose(model.states_after(log, some), users[some].numpy(), atol=1e-6)


def test_items_of_a_loss_of_fine_and_coarse_are_chained():
    """In the last space the first modality has no say, and the image has one in both."""
    torch.manual_seed(0)
    task, items = FineAndCoarse(3, 4), torch.randn(3, 6, 4)
    whole = task(items, 0.5)
    torch.nn.init.zeros_(task.entries[1].weight)  # all texts become one vector: log n, whatever is compared
    torch.nn.init.ones_(task.entries[1].bias)
    fine = info_nce(task.onwards[0](items[0]), task.entries[0](items[1]), 0.5)
    torch.testing.assert_close(task(items, 0.5), fine + np.log(6))
    assert abs(whole - fine - np.log(6)) > 0.01


def test_info_nce_of_known_angles():
    """Two pairs at right angles, t = 1/2: each term is log(1 + exp(-2)); lengths do not count."""
    anchors = torch.tensor([[3.0, 0.0], [0.0, 0.2]])
    loss = info_nce(anchors, torch.tensor([[0.5, 0.0], [0.0, 7.0]]), 0.5)
    assert float(loss) == pytest.approx(np.log1p(np.exp(-2)), abs=1e-6)
    assert float(info_nce(anchors, anchors.flip(0), 0.5)) == pytest.approx(np.log1p(np.exp(2)), abs=1e-6)


def test_views_mask_two_modalities():
    torch.manual_seed(0)
    first, second = feature_masks(3000, 3, torch.device("cpu"))
    assert first.shape == (3, 3000, 1)
    for view in (first, second):
        assert set(view.unique().tolist()) == {0, 1}
        assert (view.sum(dim=0) == 2).all()
        np.testing.assert_allclose((1 - view).mean(dim=1).flatten(), 1 / 3, atol=0.05)
    assert ((1 - first) * (1 - second)).sum() == 0


def test_views_drop_features_and_keep_the_mean():
    torch.manual_seed(0)
    factors = feature_dropout((3, 200, 50), 0.3, torch.device("cpu"))
    assert float((factors == 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert float(factors.mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("task", "values"), [("fd", 2), ("fm", 2), ("fd+fm", 2), ("fac", 1)])
def test_the_task_decides_what_views_lose(task, values):
    model, _ = build(ssl_task=task)
    first, second = model.view_factors(torch.device("cpu"))
    assert len(first.unique()) == len(second.unique()) == values
    assert torch.equal(first, second) == (task == "fac")
    assert (model.fine_and_coarse is None) == (task != "fac")
    masked = (first == 0).all(dim=2).any(dim=0).float().mean()
    assert (masked > 0.9) == ("fm" in task)  # a modality is gone as a whole


@pytest.mark.parametrize(
    ("fusion", "names"),
    [("join", ("id", "image", "text")), ("replace", ("image", "text")), ("ids", ("id",))],
)
def test_modalities_stand_in_the_order_of_the_chain(fusion, names):
    model, _ = build(fusion=fusion)
    assert model.items.names == names
    gone = (model.items() == 0).all(dim=2).T
    assert gone[0].all()
    if len(names) > 1:
        assert gone[NO_TEXT].tolist() == [name == "text" for name in names]
        assert gone[NO_VECTOR].tolist() == [name != "id" for name in names]
    others = np.setdiff1d(np.arange(ITEMS + 1), [0, NO_TEXT, NO_VECTOR])
    assert not gone[others].any()


def test_a_graph_of_three_links():
    """a took x twice and y, b took y; nobody took z. Degrees: a 2, b 1, x 1, y 2."""
    log = index_interactions(list("aaab"), list("xyxy"), catalogue=list("xyz"))
    graph = BipartiteGraph(log)
    expected = np.array([[0, 1 / np.sqrt(2), 1 / 2, 0], [0, 0, 1 / np.sqrt(2), 0]], dtype=np.float32)
    np.testing.assert_allclose(graph.to_users.to_dense(), expected, atol=1e-7)
    np.testing.assert_allclose(graph.to_items.to_dense(), expected.T, atol=1e-7)
    assert not graph.state_dict()


@pytest.mark.parametrize("rows", [[], [4], [16, 0, 3, 8]])
def test_some_rows_of_a_hop(rows):
    graph, rows = BipartiteGraph(small_log()), torch.tensor(rows, dtype=torch.int64)
    table = torch.randn(2, ITEMS + 1, 3, requires_grad=True)
    weights = torch.randn(2, len(rows), 3)
    some, whole = graph.users_from(table, rows), graph.users_from(table)
    torch.testing.assert_close(some, whole[:, rows])
    gradients = [torch.autograd.grad((out * weights).sum(), table)[0] for out in (some, whole[:, rows])]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(gradients[0], graph.to_users.to_dense()[rows].T @ weights)


def test_batches_hold_each_interaction_once():
    log = small_log()
    model, _ = build(batch_size=10)
    batches = list(model.batches(log, np.random.default_rng(0)))
    sizes = [len(batch["users"]) for batch in batches]
    assert max(sizes) <= 10
    assert max(sizes) - min(sizes) <= 1
    users, items = (torch.cat([batch[name] for batch in batches]).tolist() for name in ("users", "items"))
    everything = list(zip(log.users, log.items, strict=True))
    assert sorted(zip(users, items, strict=True)) == sorted(everything)
    assert list(zip(users, items, strict=True)) != everything


def test_vectors_rank_items_that_nobody_took():
    """Users like one kind of item each; the last items of each kind have no place in the graph."""
    random, kinds, size, known = np.random.default_rng(0), 5, 12, 9
    liked = random.integers(kinds, size=120)
    rows = [
        (u, k * size + item) for u, k in enumerate(liked) for item in random.choice(known, 4, replace=False)
    ]
    log = index_interactions(*zip(*rows, strict=True), catalogue=[str(item) for item in range(kinds * size)])
    vectors = np.eye(kinds)[np.arange(kinds * size) // size] @ random.normal(0, 1, (kinds, 16)) + 5
    vectors = np.concatenate([np.zeros((1, 16)), vectors + random.normal(0, 0.1, vectors.shape)])
    settings = SETTINGS.model_copy(update={"hidden_dim": 16, "batch_size": 64})
    right = []
    for given in (None, prepare_vectors({"text": vectors}, kinds * size)):
        torch.manual_seed(0)
        model, draw = SLMRec.build(log, settings, given), np.random.default_rng(0)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(10):
            for batch in model.batches(log, draw):
                optimizer.zero_grad()
                model.loss(batch).backward()
                optimizer.step()
        scores = model.scorer(log)(np.arange(log.user_count))[:, 1:].reshape(-1, kinds, size)
        best = scores[:, :, known:].mean(axis=2).argmax(axis=1)
        right.append((best == liked[log.user_ids.cast("int64")]).mean())
    assert right[0] < 0.5
    assert right[1] > 0.95
