"""Parts: what is accepted, what is refused, and what the folder holds afterwards."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pa_dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sda_features.errors import FeatureMismatchError, FeatureStoreError
from sda_features.offline.parts import newest_timestamp, next_timestamp, part_paths, stored_rows, write_part
from sda_features.offline.schema import SCHEMA, check_table
from sda_features.offline.table import commit, publish, sweep, write_file
from tests.feast_repo import NOON, Rows


def table_of(**columns):
    """Two good rows, with columns replaced."""
    good = {
        "item_id": ["a", "b"],
        "text_embedding": [[1.0, 2.0], None],
        "image_embedding": [None, [3.0, 4.0]],
        "adapter_version": ["v1", "v1"],
        "content_hash": ["h", "h"],
        "event_timestamp": [NOON, NOON],
    }
    return pa.table(good | columns, schema=SCHEMA)


@given(data=st.data(), count=st.integers(0, 5), dim=st.integers(1, 4))
def test_a_table_holds_its_vectors(data, count, dim):
    floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
    text = data.draw(arrays(np.float32, (count, dim), elements=floats))
    found = data.draw(arrays(np.bool_, count))
    ids = [str(row) for row in range(count)]
    table = Rows(ids, text, found, text[::-1], ~found).table()  # the second is not contiguous
    assert check_table(table) == (dim if count else None)
    assert table["text_embedding"].to_pylist() == [
        row if is_found else None for row, is_found in zip(text.tolist(), found, strict=True)
    ]
    assert table["image_embedding"].to_pylist() == [
        None if is_found else row for row, is_found in zip(text[::-1].tolist(), found, strict=True)
    ]


def test_a_part_is_what_was_written(tmp_path):
    name = write_part(tmp_path / "sda", table_of())
    assert pq.read_table(tmp_path / "sda" / name).equals(table_of())
    assert sorted(part.name for part in (tmp_path / "sda").iterdir()) == ["_delta_log", name]


def test_ids_are_stored_in_the_entitys_type(tmp_path):
    name = write_part(tmp_path, table_of(item_id=["7", "-8"]), id_type="int64")
    assert pq.read_table(tmp_path / name)["item_id"].type == pa.int64()
    with pytest.raises(FeatureMismatchError, match="'007' is not one"):
        write_part(tmp_path, table_of(item_id=["007", "8"]), id_type="int64")
    with pytest.raises(FeatureStoreError, match="have ids of type int64, got string"):
        write_part(tmp_path, table_of())


TOMORROW = datetime.now(UTC) + timedelta(days=1)


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"item_id": ["a", None]}, FeatureStoreError, "value of item_id in every row; 1 are null"),
        ({"adapter_version": [None, None]}, FeatureStoreError, "adapter_version in every row; 2 are null"),
        ({"item_id": ["a", ""]}, FeatureStoreError, "empty string"),
        ({"item_id": ["a", "a"]}, FeatureStoreError, "'a' has several"),
        ({"event_timestamp": [NOON, TOMORROW]}, FeatureStoreError, "timestamps up to now"),
        ({"text_embedding": [[1.0], [1.0, 2.0]]}, FeatureMismatchError, "lengths 1 to 2"),
        ({"text_embedding": [[], None]}, FeatureMismatchError, "lengths 0 to 0"),
        ({"text_embedding": [[1.0], None]}, FeatureMismatchError, "text and image vectors of one dimension"),
        ({"text_embedding": [[1.0, None], None]}, FeatureMismatchError, "finite numbers in text_embedding"),
        ({"image_embedding": [[1.0, float("nan")], None]}, FeatureMismatchError, "finite numbers in image_"),
        ({"image_embedding": [[1.0, float("-inf")], None]}, FeatureMismatchError, "finite numbers in image_"),
    ],
)
def test_bad_rows_are_refused(tmp_path, columns, error, message):
    with pytest.raises(error, match=message):
        write_part(tmp_path, table_of(**columns))
    assert list(tmp_path.iterdir()) == []


def test_other_columns_are_refused(tmp_path):
    doubles = table_of().set_column(1, "text_embedding", pa.array([[1.0, 2.0], None], pa.list_(pa.float64())))
    for table in (table_of().drop_columns("content_hash"), doubles):
        with pytest.raises(FeatureStoreError, match=r"Expected the columns item_id: string, .*; got"):
            write_part(tmp_path, table)
    with pytest.raises(FeatureStoreError, match="empty table"):
        write_part(tmp_path, SCHEMA.empty_table())


def test_all_parts_have_one_dimension(tmp_path):
    empty = {"text_embedding": [None, None], "image_embedding": [None, None]}
    write_part(tmp_path, table_of(**empty))  # decides nothing
    write_part(tmp_path, table_of(item_id=["c", "d"]))
    write_part(tmp_path, table_of(item_id=["e", "f"], **empty))
    with pytest.raises(FeatureMismatchError, match="have vectors of dimension 2, got 5"):
        Rows.random(["g"]).write(tmp_path)


def test_a_part_of_another_writer_counts(tmp_path):
    pq.write_table(table_of(), tmp_path / "theirs.parquet")
    with pytest.raises(FeatureMismatchError, match="have vectors of dimension 2, got 5"):
        Rows.random(["g"]).write(tmp_path)
    with pytest.raises(FeatureStoreError, match="later event_timestamp"):
        write_part(tmp_path, table_of())


def test_an_item_is_only_rewritten_later(tmp_path, later):
    write_part(tmp_path, table_of())
    write_part(tmp_path, table_of(item_id=["c", "d"]))  # other items of the same run
    for hours in (0, -1):
        with pytest.raises(FeatureStoreError, match="1 items have a stored row that is as new, such as 'b'"):
            write_part(tmp_path, table_of(item_id=["b", "e"], event_timestamp=[later(hours)] * 2))
    write_part(tmp_path, table_of(item_id=["b", "e"], event_timestamp=[later(1), later(-1)]))
    assert len(part_paths(tmp_path)) == 3


def test_a_future_timestamp_is_taken_only_just_after_a_stored_one(tmp_path):
    """After the clock was set back, a new row must lie in the future to be the newest."""
    pq.write_table(table_of(event_timestamp=[NOON, TOMORROW]), tmp_path / "theirs.parquet")
    assert newest_timestamp(tmp_path) == TOMORROW
    after = next_timestamp(tmp_path)
    assert after == TOMORROW + timedelta(microseconds=1)
    with pytest.raises(FeatureStoreError, match="timestamps up to now"):
        write_part(tmp_path, table_of(event_timestamp=[after + timedelta(microseconds=1)] * 2))
    write_part(tmp_path, table_of(event_timestamp=[after] * 2))
    assert newest_timestamp(tmp_path) == after


def test_the_next_timestamp_is_now_and_never_a_stored_one(tmp_path):
    before = datetime.now(UTC)
    assert newest_timestamp(tmp_path / "absent") is None
    assert before <= next_timestamp(tmp_path / "absent") <= datetime.now(UTC)
    for _ in range(3):  # runs that start in one microsecond
        stamp = next_timestamp(tmp_path)
        write_part(tmp_path, table_of(event_timestamp=[stamp] * 2))
        assert stamp < next_timestamp(tmp_path)


def test_what_a_killed_run_half_wrote_is_removed(tmp_path):
    name = write_part(tmp_path, table_of())
    (tmp_path / f".{name}.x1").write_bytes(b"half")
    (tmp_path / ".lock").write_bytes(b"")
    orphan = write_file(tmp_path, table_of(item_id=["c", "d"])).path
    assert (tmp_path / orphan).exists()
    assert stored_rows(tmp_path)["item_id"].to_pylist() == ["a", "b"]
    sweep(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".lock", "_delta_log", name]


def test_no_reader_sees_staged_rows_before_they_are_committed(tmp_path):
    """A killed worker's file is deleted; others count after `publish` and `commit`."""
    name = write_part(tmp_path, table_of())
    rows = table_of(item_id=["c", "d"])
    staged, lost = (write_file(tmp_path, rows, staged=True) for _ in range(2))
    assert len(list(tmp_path.glob(".part-*.parquet"))) == 2, "vacuous"
    for reader in (pq.read_table(tmp_path), pa_dataset.dataset(tmp_path).to_table(), stored_rows(tmp_path)):
        assert reader["item_id"].to_pylist() == ["a", "b"]
    publish(tmp_path, [staged])
    commit(tmp_path, [staged])
    sweep(tmp_path)
    assert sorted(stored_rows(tmp_path)["item_id"].to_pylist()) == ["a", "b", "c", "d"]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(["_delta_log", name, staged.path])
    assert lost.path not in part_paths(tmp_path)


def test_a_table_that_stays_open_is_never_stale(tmp_path, later):
    folder = tmp_path / "sda"
    write_part(folder, table_of())
    assert len(stored_rows(folder)) == 2
    with ThreadPoolExecutor(1) as other:  # has tables of its own
        rows = table_of(item_id=["c", "d"], event_timestamp=[later(1), later(1)])
        other.submit(write_part, folder, rows).result()
        assert len(stored_rows(folder)) == 4
        shutil.rmtree(folder)
        assert len(stored_rows(folder)) == 0
        other.submit(write_part, folder, table_of(item_id=["e", "f"])).result()
    assert sorted(stored_rows(folder)["item_id"].to_pylist()) == ["e", "f"]


def test_stored_rows_are_the_newest(tmp_path, later):
    assert stored_rows(tmp_path / "absent").num_rows == 0
    write_part(tmp_path, table_of())
    newer = {"adapter_version": ["v2", "v2"], "event_timestamp": [later(1), later(1)]}
    write_part(tmp_path, table_of(item_id=["b", "c"], **newer))

    def versions(**options):
        rows = stored_rows(tmp_path, **options)
        return dict(zip(rows["item_id"].to_pylist(), rows["adapter_version"].to_pylist(), strict=True))

    assert versions() == {"a": "v1", "b": "v2", "c": "v2"}
    assert versions(end=NOON) == {"a": "v1", "b": "v1"}
    assert set(stored_rows(tmp_path).column_names) & {"text_embedding", "image_embedding"} == set()
