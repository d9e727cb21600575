import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sda_features.config import EvaluationSettings, VectorEvaluationSettings
from sda_features.evaluation.item_vectors import (
    evaluate_popularity,
    evaluate_vectors,
    next_pairs,
    session_pairs,
    unit_vectors,
)
from sda_features.logs.interactions import index_interactions
from sda_features.logs.splits import leave_one_out, split_interactions
from tests.reference import item_vectors as reference

ITEMS = 30
SETTINGS = VectorEvaluationSettings(neighbours=3, history=3, decay=0.5, window=2)
PROTOCOL = EvaluationSettings(cutoff=4, tail_below=2)


def make_log(seed=0, users=25):
    """Users with 1 to 10 items on five days, some taken twice; items 27 to 29 are never taken."""
    random = np.random.default_rng(seed)
    who = [u for u in range(users) for _ in range(random.integers(1, 11))]
    what, when = random.integers([[27], [5]], size=(2, len(who)))
    days = np.datetime64("2020-02-27T08:00:00") + when * np.timedelta64(1, "D")
    return index_interactions(who, what, days, catalogue=range(ITEMS))


def make_vectors(seed=0):
    """Items 3 and 28 have none."""
    vectors = np.random.default_rng(seed).normal(size=(2, ITEMS + 1, 5)).astype(np.float32)
    vectors[:, [0, 3, 28]] = 0
    return {"text": vectors[0], "image": vectors[1]}


def as_triples(pairs):
    return set(zip(pairs.users.tolist(), pairs.queries.tolist(), pairs.targets.tolist(), strict=True))


def values(measures, name):
    (found,) = [measure for measure in measures if measure.name == name]
    return dict(zip(found.users.tolist(), found.values.tolist(), strict=True))


@given(seed=st.integers(0, 10**6), window=st.integers(1, 12), share=st.floats(0, 1))
def test_pairs_match_the_slow_twin(seed, window, share):
    log = make_log(seed, users=6)
    held = np.random.default_rng(seed).random(len(log.items)) < share
    assert as_triples(session_pairs(log, held, window=window)) == reference.session_pairs(log, held, window)
    assert as_triples(next_pairs(log, held)) == reference.next_pairs(log, held)


def test_sessions_are_days_or_equal_numbers_and_need_times():
    users, items = ["u"] * 4, ["a", "b", "c", "a"]
    held = np.ones(4, np.bool_)
    hours = np.array(["2020-01-01T01", "2020-01-01T23", "2020-01-02T01", "2020-01-02T01"], "datetime64[h]")
    days = session_pairs(index_interactions(users, items, hours.astype("datetime64[s]")), held, window=9)
    assert as_triples(days) == {(0, 1, 2), (0, 2, 1), (0, 3, 1), (0, 1, 3)}
    numbers = session_pairs(index_interactions(users, items, [1, 2, 2, 3]), held, window=9)
    assert as_triples(numbers) == {(0, 2, 3), (0, 3, 2)}
    assert not as_triples(session_pairs(index_interactions(users, items), held, window=9))


@pytest.mark.parametrize("by_product", [False, True])
@pytest.mark.parametrize("pairs", ["test", "all"])
def test_measures_match_the_slow_twin(by_product, pairs):
    split, modalities = leave_one_out(make_log(seed=1, users=16)), make_vectors()
    products = np.append(0, np.arange(ITEMS) // 3 + 1) if by_product else None
    settings = SETTINGS.model_copy(update={"pairs": pairs})
    measures = evaluate_vectors(modalities, split, settings, PROTOCOL, products=products)
    units = unit_vectors(modalities).astype(float).tolist()
    log, counts = split.interactions, split.train.item_counts
    groups = {
        "all": lambda item: True,
        "warm": lambda item: counts[item] > 0,
        "tail": lambda item: counts[item] < PROTOCOL.tail_below,
        "cold": lambda item: counts[item] == 0,
    }
    held = split.held if pairs == "test" else np.ones(len(log.items), np.bool_)
    kinds = {
        "session": reference.session_pairs(log, held, SETTINGS.window),
        "next": reference.next_pairs(log, held),
    }
    for kind, triples in kinds.items():
        if products is not None:
            triples = {t for t in triples if products[t[1]] != products[t[2]]}
        for group, belongs in groups.items():
            by_user = {}
            for user, query, target in triples:
                if belongs(target):
                    rank = reference.pair_rank(units, query, target, products)
                    by_user.setdefault(user, []).append(float(rank < SETTINGS.neighbours + 1))
            expected = {user: sum(hits) / len(hits) for user, hits in by_user.items()}
            assert expected, (kind, group)
            assert values(measures, f"recall@3/{kind}/{group}") == pytest.approx(expected)
    for group, belongs in groups.items():
        expected = {}
        for user, target in zip(split.test.users.tolist(), split.test.targets.tolist(), strict=True):
            start, end = split.test.history.offsets[user : user + 2]
            history = split.test.history.items[start:end].tolist()
            if belongs(target) and not (products is not None and products[target] in products[history]):
                rank = reference.next_rank(units, history, target, 3, 0.5, products)
                expected[user] = float(rank < PROTOCOL.cutoff + 1) / np.log2(rank + 1)
        assert values(measures, f"ndcg@4/full/{group}") == pytest.approx(expected), group
        assert expected, group


def test_items_are_also_ranked_among_a_sample_where_there_are_enough():
    split, few = leave_one_out(make_log()), PROTOCOL.model_copy(update={"negatives": 5})
    measures = evaluate_vectors(make_vectors(), split, SETTINGS, few)
    sampled, full = (values(measures, f"ndcg@4/{name}/all") for name in ("sampled-5", "full"))
    assert sampled.keys() == full.keys()
    assert all(sampled[user] >= full[user] for user in full)
    assert sum(sampled.values()) > 1.5 * sum(full.values())
    names = {measure.name for measure in evaluate_vectors(make_vectors(), split, SETTINGS, PROTOCOL)}
    assert not any("sampled" in name for name in names), "30 items are no 100 others"


def test_fractions_by_hand():
    """Four items on a square; u took a, b, c in one session, v took a and then d, w only a."""
    split = leave_one_out(index_interactions(list("uuuvvvw"), list("abcaada"), [1, 1, 1, 1, 2, 3, 1]))
    near = np.array([[0, 0], [1, 0], [1, 0.1], [-1, -1], [-1, 0.1]], np.float32)  # a is near b, c near d
    settings = VectorEvaluationSettings(neighbours=1, decay=1, pairs="all")
    found = evaluate_vectors({"text": near}, split, settings, EvaluationSettings(cutoff=1))
    assert values(found, "recall@1/session/all") == {0: pytest.approx(2 / 6)}  # ab and ba of six pairs
    assert values(found, "recall@1/next/all") == {0: 1 / 2, 1: 0}  # ab, not bc; not ad
    assert values(found, "hit@1/full/all") == {0: 0, 1: 0}  # d is nearer to a and b than c; b to a than d
    of_test = settings.model_copy(update={"pairs": "test"})
    held = evaluate_vectors({"text": near}, split, of_test, EvaluationSettings(cutoff=1))
    assert values(held, "recall@1/session/all") == {0: 0}  # ac and bc
    assert values(held, "recall@1/session/cold") == {0: 0}
    popular = evaluate_popularity(split, settings, EvaluationSettings(cutoff=1))
    assert values(popular, "recall@1/session/all") == {0: pytest.approx(2 / 6)}  # a follows b and c


def test_users_are_drawn_once_for_all_vectors():
    split = leave_one_out(make_log(users=60))
    few = SETTINGS.model_copy(update={"max_users": 7})
    first, second = (evaluate_vectors(make_vectors(seed), split, few, PROTOCOL) for seed in (0, 1))
    assert [m.users.tolist() for m in first] == [m.users.tolist() for m in second]
    assert len(values(first, "hit@4/full/all")) == 7
    everybody = evaluate_vectors(make_vectors(), split, SETTINGS, PROTOCOL)
    assert len(values(everybody, "hit@4/full/all")) == len(split.test.users) > 7


def test_held_interactions_of_a_split_by_time():
    log = make_log(users=40)
    split = split_interactions(log, EvaluationSettings(split="temporal", validation_from=0.5, test_from=0.7))
    assert split.held.sum() + len(split.test.history.items) == len(log.items)
    assert log.times[split.held].min() > split.test.history.times.max()


def test_two_modalities_count_alike_and_a_missing_one_leaves_the_other():
    modalities = make_vectors()
    modalities["image"] = modalities["image"] * 1000
    modalities["text"][5] = 0
    units = unit_vectors(modalities)
    assert np.linalg.norm(units[[5, 6]], axis=1) == pytest.approx([1, 1])
    assert not units[[0, 3, 28]].any()
    assert np.linalg.norm(units[6, :5]) == pytest.approx(np.linalg.norm(units[6, 5:]), rel=1e-5)
    assert not units[5, :5].any()
