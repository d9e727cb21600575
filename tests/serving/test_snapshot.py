"""Snapshots: what is written is read, bit for bit; the server's client is the oracle."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sda_features.errors import FeatureMismatchError, FeatureStoreError
from sda_features.serving import snapshot
from sda_features.serving.snapshot import SnapshotClient, write_snapshot
from tests.serving.stored import assert_same, put

DIM = 5


def arrays(count, seed=0):
    rng = np.random.default_rng(seed)
    text, image = rng.normal(size=(2, count, DIM)).astype(np.float32)
    text_found, image_found = rng.random((2, count)) < 0.8
    times = np.datetime64("2024-05-01T12:00:00.000001", "us") + np.arange(count)
    return {
        "text": text,
        "image": image,
        "text_found": text_found,
        "image_found": image_found,
        "event_times": times,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("snapshots")


@given(
    ids=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), unique=True, max_size=30),
    data=st.data(),
)
def test_what_is_written_is_read(folder, ids, data):
    stored = arrays(len(ids))
    stored["text"][:1, :2] = [-0.0, 1e-40]
    write_snapshot(folder / "vectors.arrow", ids, version="v1", **stored)
    asked = data.draw(st.lists(st.sampled_from([*ids, "absent"])))
    with SnapshotClient(folder / "vectors.arrow", dim=DIM, version="v1") as client:
        assert len(client) == len(ids)
        found = client.get(asked)
    assert found.item_ids == tuple(asked)
    for row, item_id in enumerate(asked):
        at = ids.index(item_id) if item_id in ids else None
        for name in ("text", "image"):
            there = at is not None and stored[f"{name}_found"][at]
            assert getattr(found, f"{name}_found")[row] == there
            expected = stored[name][at] if there else np.zeros(DIM, np.float32)
            assert getattr(found, name)[row].tobytes() == expected.tobytes()
        assert found.versions[row] == (None if at is None else "v1")
        if at is None:
            assert np.isnat(found.event_times[row])
        else:
            assert found.event_times[row] == stored["event_times"][at]


def test_it_is_what_the_server_gives(server, project, client, tmp_path):
    ids, stored = ["a", "b", "c", "7"], arrays(4, seed=3)
    stored["event_times"] = np.array([0, 1_700_000_000] * 2, "datetime64[s]")
    for row, item_id in enumerate(ids):
        there = {name: stored[name][row] for name in ("text", "image") if stored[f"{name}_found"][row]}
        put(server, project, item_id, **there, at=int(stored["event_times"][row].astype(int)))
    write_snapshot(tmp_path / "s", ids, version="v1", **stored)
    asked = ["c", "?", 7, "a", "c"]
    expected = client.get(asked)
    found = SnapshotClient(tmp_path / "s").get(asked)
    assert not expected.text_found.all()
    assert expected.text_found.any()
    assert_same(found, expected)
    assert found.text.flags.c_contiguous


def test_ids_that_share_a_hash(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "_hashes", lambda names: np.array([len(name) for name in names], np.uint64))
    ids, stored = ["a", "bb", "b", "cc", "c"], arrays(5)
    write_snapshot(tmp_path / "s", ids, version="v1", text=stored["text"], image=stored["image"])
    asked = ["c", "b", "z", "cc", "a", "zz", "zzz"]
    found = SnapshotClient(tmp_path / "s").get(asked)
    assert found.text_found.tolist() == [True, True, False, True, True, False, False]
    assert found.text[[0, 1, 3, 4]].tobytes() == stored["text"][[4, 2, 3, 0]].tobytes()


def test_age(tmp_path):
    now = datetime.now(UTC).replace(tzinfo=None)
    times = np.array([now - timedelta(days=3), now, "NaT"], "datetime64[us]")
    ids, ones = ["old", "new", "?"], np.ones((3, DIM), np.float32)
    write_snapshot(tmp_path / "s", ids, version="v1", text=ones, image=ones, event_times=times)
    client = SnapshotClient(tmp_path / "s", max_age=timedelta(days=1))
    assert client.get(ids).text_found.tolist() == [False, True, False]


def test_another_version_or_dimension(tmp_path):
    ones = np.ones((1, 4), np.float32)
    write_snapshot(tmp_path / "s", ["a"], version="v1", text=ones, image=ones)
    with pytest.raises(FeatureMismatchError, match="dimension 4, expected 5"):
        SnapshotClient(tmp_path / "s", dim=5)
    with pytest.raises(FeatureMismatchError, match="adapter version 'v1', expected 'v2'"):
        SnapshotClient(tmp_path / "s", version="v2")
    with pytest.raises(FeatureMismatchError, match="adapter version 'v1', expected 'v2'"):
        SnapshotClient(tmp_path / "s").get(["a"], "v2")


def test_a_file_that_is_no_snapshot(tmp_path):
    with pytest.raises(FeatureStoreError, match="there is no"):
        SnapshotClient(tmp_path / "absent")
    (tmp_path / "text").write_text("text, and more of it than a footer has")
    (tmp_path / "empty").write_bytes(b"")
    table = pa.table({"a": [1]})
    with pa.ipc.new_file(str(tmp_path / "arrow"), table.schema) as writer:
        writer.write_table(table)
    for name in ("text", "empty", "arrow"):
        with pytest.raises(FeatureStoreError, match="is no snapshot"):
            SnapshotClient(tmp_path / name)


def test_rows_that_cannot_be_written(tmp_path):
    ones = np.ones((2, DIM), np.float32)
    with pytest.raises(FeatureStoreError, match="one row an item; '7' has several"):
        write_snapshot(tmp_path / "s", ["7", 7], version="v1", text=ones, image=ones)
    shapes = r"\[2, d\] of 2 items, got text \(2, 5\) and image \(2, 4\)"
    with pytest.raises(FeatureMismatchError, match=shapes):
        write_snapshot(tmp_path / "s", ["a", "b"], version="v1", text=ones, image=ones[:, :4])
    assert not list(tmp_path.iterdir())


def test_a_new_file_does_not_disturb_who_reads_the_old_one(tmp_path):
    for value in (1, 2):
        matrix = np.full((1000, DIM), value, np.float32)
        ids = [str(number) for number in range(1000)]
        write_snapshot(tmp_path / "s", ids, version=f"v{value}", text=matrix, image=matrix)
        if value == 1:
            old = SnapshotClient(tmp_path / "s")
    assert (old.get(ids).text == 1).all()
    assert (SnapshotClient(tmp_path / "s").get(ids).text == 2).all()
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
