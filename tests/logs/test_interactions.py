import json
from datetime import UTC, datetime, timedelta

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sda_features.config import EvaluationSettings
from sda_features.errors import InteractionsError
from sda_features.logs.interactions import index_interactions, k_core, read_interactions
from sda_features.logs.splits import leave_one_out, split_interactions, temporal_split
from sda_features.tables.files import FORMAT_OF_SUFFIX

ROWS = [
    ("bo", "x", 3),
    ("al", "y", 1),
    ("bo", "z", 1),
    ("al", "x", 2),
    ("bo", "y", 2),
    ("al", "w", 2),
    ("cy", "x", 1),
]
SEQUENCES = {"al": ["y", "x", "w"], "bo": ["z", "y", "x"], "cy": ["x"]}


def table(rows=ROWS, time="position"):
    users, items, order = zip(*rows, strict=True)
    return pa.table({"user_id": users, "item_id": items, time: order})


def row(log, user):
    return log.items[log.offsets[user] : log.offsets[user + 1]].tolist()


def sequences(log):
    names = ["PADDING", *log.item_ids.to_pylist()]
    return {user: [names[code] for code in row(log, u)] for u, user in enumerate(log.user_ids.to_pylist())}


def targets(holdout):
    """User -> the item to predict."""
    users = holdout.history.user_ids.take(holdout.users).to_pylist()
    items = holdout.history.item_ids.take(holdout.targets - 1).to_pylist()
    return dict(zip(users, items, strict=True))


def write(path, content):
    if path.suffix == ".parquet":
        pq.write_table(content, path)
    elif path.suffix == ".csv":
        pa_csv.write_csv(content, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in content.to_pylist()))
    return path


@pytest.mark.parametrize("suffix", FORMAT_OF_SUFFIX)
def test_reads_every_format_alike(tmp_path, suffix):
    log = read_interactions(write(tmp_path / f"log{suffix}", table()))
    assert sequences(log) == SEQUENCES
    assert log.item_ids.to_pylist() == ["w", "x", "y", "z"]
    assert (log.offsets.dtype, log.items.dtype) == (np.int64, np.int32)
    assert log.items.min() == 1
    assert log.data_hash == read_interactions(write(tmp_path / "same.parquet", table())).data_hash


def test_integer_ids_become_text_and_csv_keeps_leading_zeros(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id,position\n007,010,1\n")
    log = read_interactions(tmp_path / "log.csv")
    assert (log.user_ids.to_pylist(), log.item_ids.to_pylist()) == (["007"], ["010"])
    assert index_interactions([7], np.array([10])).item_ids.to_pylist() == ["10"]
    encoded = pa.array(["b", "a", "b"]).dictionary_encode()
    assert sequences(index_interactions(encoded, pa.chunked_array([["x"], ["y", "z"]]))) == {
        "a": ["y"],
        "b": ["x", "z"],
    }


def test_timestamps_order_the_log(tmp_path):
    start = datetime(2024, 1, 1, tzinfo=UTC)
    rows = [(user, item, start + timedelta(days=order)) for user, item, order in ROWS]
    log = read_interactions(write(tmp_path / "log.parquet", table(rows, "timestamp")))
    assert sequences(log) == SEQUENCES
    dates = [(user, item, when.date()) for user, item, when in rows]
    log = read_interactions(write(tmp_path / "log.parquet", table(dates, "day")), time_column="day")
    assert sequences(log) == SEQUENCES


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=60))
def test_index_matches_a_stable_sort_of_each_user(rows):
    users, items, order = (list(column) for column in zip(*rows, strict=True))
    expected = {}
    for user, item, _ in sorted(rows, key=lambda row: (str(row[0]), row[2])):
        expected.setdefault(str(user), []).append(str(item))
    log = index_interactions(users, items, order)
    assert sequences(log) == expected
    assert log.item_counts.sum() == len(rows)
    assert log.item_counts[0] == 0
    for width in (1, 3, 100):
        recent = log.recent(np.arange(log.user_count), width)
        for row, wanted in zip(recent, sequences(log).values(), strict=True):
            names = [log.item_ids[int(code) - 1].as_py() for code in row if code]
            assert names == wanted[-width:]
            assert (np.diff((row > 0).astype(int)) >= 0).all()  # padding is on the left
    backwards = np.arange(log.user_count)[::-1]
    rows, codes = log.rows_of(backwards)
    for row, user in enumerate(backwards):
        assert (
            codes[rows == row].tolist() == log.recent(np.array([user]), 100)[0, -log.lengths[user] :].tolist()
        )


def test_catalogue_keeps_its_order_and_unseen_items():
    log = index_interactions(["a", "a"], ["x", "z"], catalogue=["z", "unseen", "x"])
    assert log.item_ids.to_pylist() == ["z", "unseen", "x"]
    assert log.items.tolist() == [3, 1]
    assert log.item_counts.tolist() == [0, 1, 0, 1]


def test_hash_depends_on_order_ids_and_catalogue():
    logs = [
        index_interactions(["a", "a"], ["x", "y"]),
        index_interactions(["a", "a"], ["y", "x"]),
        index_interactions(["b", "b"], ["x", "y"]),
        index_interactions(["a", "a"], ["x", "y"], catalogue=["x", "y", "z"]),
        index_interactions(["a", "a"], ["xy", "z"]),
        index_interactions(["a", "a"], ["x", "yz"]),
    ]
    assert len({log.data_hash for log in logs}) == len(logs)


def test_leave_one_out_keeps_short_users_in_training():
    split = leave_one_out(index_interactions(*zip(*ROWS, strict=True)))
    assert sequences(split.train) == {"al": ["y"], "bo": ["z"], "cy": ["x"]}
    assert sequences(split.test.history) == {"al": ["y", "x"], "bo": ["z", "y"], "cy": ["x"]}
    assert split.validation.history is split.train
    assert split.short_users == 1
    assert targets(split.validation) == {"al": "x", "bo": "y"}
    assert targets(split.test) == {"al": "w", "bo": "x"}


def test_leave_one_out_needs_somebody_with_three():
    with pytest.raises(InteractionsError, match=r"at least 3 interactions.*longest of 2 users has 2"):
        leave_one_out(index_interactions(["a", "a", "b"], ["x", "y", "x"]))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([], []), "holds no interactions"),
        ((["a", None], ["x", "y"]), "1 of 2 user ids are null or empty, the first in row 2"),
        ((["a", "b"], ["", "y"]), "1 of 2 item ids are null or empty, the first in row 1"),
        ((["a"], [1.5]), "1 of 1 item ids are not usable, row 1: 1.5 is no whole number"),
        ((["a", 1], ["x", "y"]), "user ids mix types"),
        ((["a"], ["x"], ["today"]), "numbers or timestamps as the order, got string"),
        ((["a"], ["x"], [None]), "order, got null"),
        ((["a", "a"], ["x", "y"], [1, None]), "orders interactions has nulls"),
        ((["a", "a"], ["x", "y"], [1.0, float("nan")]), "orders interactions has nulls"),
    ],
)
def test_bad_columns_are_named(columns, message):
    with pytest.raises(InteractionsError, match=message):
        index_interactions(*columns)


def test_bad_catalogues_are_named():
    with pytest.raises(InteractionsError, match=r"2 items of the log are not in the catalogue, e.g. y, z"):
        index_interactions(["a"] * 3, ["x", "y", "z"], catalogue=["x"])
    with pytest.raises(InteractionsError, match=r"1 catalogue ids occur more than once, e.g. x"):
        index_interactions(["a"], ["x"], catalogue=["x", "x"])


@pytest.mark.parametrize("suffix", FORMAT_OF_SUFFIX)
def test_a_log_may_lie_at_a_url(tmp_path, suffix):
    path = write(tmp_path / f"log{suffix}", table())
    fsspec.filesystem("memory").pipe(f"/logs/log{suffix}", path.read_bytes())
    assert sequences(read_interactions(f"memory://logs/log{suffix}")) == SEQUENCES


def test_what_a_log_lacks_is_named(tmp_path):
    path = write(tmp_path / "log.csv", table())
    with pytest.raises(InteractionsError, match="no column 'who'; the log has user_id, item_id, position"):
        read_interactions(path, user_column="who", time_column="position")
    with pytest.raises(InteractionsError, match=r"log.csv: .*not in the catalogue"):
        read_interactions(path, catalogue=["x"])


def test_an_entity_frame_of_feast_is_a_log(tmp_path):
    times = [datetime(2024, 1, order, tzinfo=UTC) for _, _, order in ROWS]
    users, items, _ = zip(*ROWS, strict=True)
    frame = pd.DataFrame({"user_id": users, "item_id": items, "event_timestamp": times, "label": 1})
    log = read_interactions(frame)
    assert sequences(log) == SEQUENCES
    assert log.data_hash == read_interactions(write(tmp_path / "log.parquet", table())).data_hash
    with pytest.raises(InteractionsError, match="The frame: no column 'day'; the log has user_id, item_id"):
        read_interactions(frame, time_column="day")
    with pytest.raises(InteractionsError, match="a pandas frame, got list"):
        read_interactions([1, 2])


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=80), st.integers(1, 4))
def test_a_k_core_is_what_dropping_one_at_a_time_leaves(rows, k):
    log = index_interactions(*zip(*rows, strict=True), range(len(rows)))
    left = [(str(user), str(item)) for user, item in rows]
    while rare := [
        (side, name)
        for side in (0, 1)
        for name in {row[side] for row in left}
        if sum(row[side] == name for row in left) < k
    ]:
        side, name = rare[0]
        left = [row for row in left if row[side] != name]
    if not left:
        with pytest.raises(InteractionsError, match=rf"The {k}-core of {len(rows)} interactions is empty"):
            k_core(log, k)
        return
    core = k_core(log, k)
    expected = index_interactions(*zip(*left, strict=True))
    assert core.data_hash == expected.data_hash
    assert core.times is not None
    assert [rows[time] for time in core.times] == [
        (int(user), int(item)) for user, items in sequences(core).items() for item in items
    ]


def test_a_k_core_drops_catalogue_items_that_nobody_took():
    log = index_interactions(["a", "a"], ["x", "x"], catalogue=["unseen", "x"])
    assert k_core(log, 2).item_ids.to_pylist() == ["x"]
    assert k_core(log, 2).items.tolist() == [1, 1]


# ten instants; validation from 0.4 begins at 4, test from 0.7 at 7; dy comes after training: never evaluated
TAKEN = ["al a", "al b", "bo a", "cy c", "al c", "al d", "dy a", "al e", "bo f", "dy b"]


def test_a_temporal_split_never_learns_from_the_future():
    log = index_interactions(*zip(*map(str.split, TAKEN), strict=True), range(len(TAKEN)))
    split = temporal_split(log, validation_from=0.4, test_from=0.7)
    assert sequences(split.train) == {"al": ["a", "b"], "bo": ["a"], "cy": ["c"], "dy": []}
    assert split.validation.history is split.train
    assert sequences(split.test.history) == {
        "al": ["a", "b", "c", "d"],
        "bo": ["a"],
        "cy": ["c"],
        "dy": ["a"],
    }
    assert targets(split.validation) == {"al": "c"}
    assert targets(split.test) == {"al": "e", "bo": "f"}
    assert split.short_users == 2
    assert split.train.item_counts[log.item_ids.index("e").as_py() + 1] == 0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 9)), min_size=20, max_size=60))
def test_a_temporal_split_keeps_an_instant_together(rows):
    log = index_interactions(*zip(*rows, strict=True))
    try:
        split = temporal_split(log, validation_from=0.5, test_from=0.8)
    except InteractionsError:
        return
    limits = [np.sort(log.times)[int(share * len(rows))] for share in (0.5, 0.8)]
    assert split.train.times.max() < limits[0]
    assert split.test.history.times.max(initial=-1) < limits[1]
    by_user = {
        user: [row[1:] for row in sorted(rows, key=lambda r: r[2]) if row[0] == user] for user in range(5)
    }
    known = {str(user) for user, items in by_user.items() if any(time < limits[0] for _, time in items)}
    for held, low, high in ((split.validation, *limits), (split.test, limits[1], np.inf)):
        assert targets(held) == {
            str(user): str(window[0])
            for user, items in by_user.items()
            if (window := [item for item, time in items if low <= time < high]) and str(user) in known
        }


def test_a_temporal_split_needs_times(tmp_path):
    log = read_interactions(write(tmp_path / "log.parquet", table()))
    with pytest.raises(InteractionsError, match="needs a column of timestamps"):
        split_interactions(log, EvaluationSettings(split="temporal"))
    same = index_interactions(["a", "b"], ["x", "y"], [1, 1])
    with pytest.raises(InteractionsError, match="later validation item: training ends with 0 of 2"):
        temporal_split(same, validation_from=0.4, test_from=0.5)
    assert split_interactions(log, EvaluationSettings()).test.users.tolist() == [0, 1]


@given(seed=st.integers(0, 10**6), share=st.floats(0.1, 0.6))
def test_a_cold_split_trains_on_no_cold_item_and_on_nothing_later(seed, share):
    random = np.random.default_rng(seed)
    users, items = random.integers(12, size=120), random.integers(20, size=120)
    log = index_interactions(users, items)
    split = split_interactions(log, EvaluationSettings(split="cold", cold_share=share))
    cold = set(log.items[split.held].tolist())
    assert len(cold) == round(share * log.item_count)
    assert not cold & {*split.train.items.tolist(), *split.test.history.items.tolist()}
    tested = dict(zip(split.test.users.tolist(), split.test.targets.tolist(), strict=True))
    validated = dict(zip(split.validation.users.tolist(), split.validation.targets.tolist(), strict=True))
    for user in range(log.user_count):
        own = row(log, user)
        places = [place for place, item in enumerate(own) if item in cold]
        before = [item for item in own[: places[-1] if places else 0] if item not in cold]
        if len(before) >= 2:
            assert tested.pop(user) == own[places[-1]]
            assert validated.pop(user) == before[-1]
            assert row(split.train, user) == before[:-1]
            assert row(split.test.history, user) == before
        else:
            assert row(split.train, user) == [item for item in own if item not in cold]
    assert not tested
    assert not validated
