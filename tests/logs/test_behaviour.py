import numpy as np
import pyarrow as pa
import pytest

from sda_features.config import BehaviourSettings
from sda_features.logs.behaviour import SESSION_WINDOW, read_behaviour, taken_together
from sda_features.logs.interactions import index_interactions
from tests.logs.test_interactions import table, write


def read(folder, rows, **settings):
    path = write(folder / "log.parquet", table(rows, "timestamp"))
    found = read_behaviour(BehaviourSettings.parse(interactions=path, **settings))
    assert found is not None
    return found


def pairs_of(rows):
    log = index_interactions(*(pa.array(column) for column in zip(*rows, strict=True)))
    ids = log.item_ids.to_pylist()
    return {(ids[a - 1], ids[b - 1]) for a, b in taken_together(log).tolist()}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("u", "a", 1), ("u", "b", 2), ("u", "c", 3)], {("a", "b"), ("b", "c")}),
        ([("u", "a", 1), ("u", "b", 1), ("u", "c", 1)], {("a", "b"), ("b", "c"), ("a", "c")}),
        ([("u", "a", 1), ("v", "b", 1)], set()),
        ([("u", "a", 1), ("u", "a", 2)], set()),
    ],
)
def test_pairs_are_of_one_customer_and_one_session_or_neighbours(rows, expected):
    assert pairs_of(rows) == expected


def test_a_large_session_does_not_make_pairs_of_all_with_all():
    found = pairs_of([("u", f"i{n:03d}", 1) for n in range(100)])
    assert len(found) == sum(100 - apart for apart in range(1, SESSION_WINDOW + 1))


@pytest.mark.parametrize("split", ["leave-one-out", "temporal"])
def test_what_is_held_out_is_in_no_pair(tmp_path, split):
    rows = [(f"u{user}", f"i{user}-{place}", place) for user in range(4) for place in range(10)]
    found = read(tmp_path, rows, split=split)
    ids = found.item_ids.to_pylist()
    known = {ids[code - 1] for code in np.unique(found.pairs).tolist()}
    assert known == {f"i{user}-{place}" for user in range(4) for place in range(8)}
    assert found.identity["training_sha256"] != found.identity["sha256"]


def test_partners_are_symmetric_and_among_the_allowed_positions_alone(tmp_path):
    found = read(tmp_path, [("u", item, n) for n, item in enumerate("abcdxx")])
    order = pa.chunked_array([pa.array(["c", "unseen", "b", "a", "d"])])
    together, fewer = found.partners(order, np.array([0, 1, 2, 3]), np.array([0, 1, 2]))
    assert np.argwhere(together.toarray()).tolist() == [[0, 2], [2, 0], [2, 3], [3, 2]]
    assert np.argwhere(fewer.toarray()).tolist() == [[0, 2], [2, 0]]
