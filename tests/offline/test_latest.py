"""The newest row of each key, against a loop over rows."""

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pa_dataset
import pyarrow.parquet as pq
import pytest

from sda_features.offline.latest import NO_TIME, epoch_nanoseconds, latest_batches, latest_rows
from tests.feast_repo import NOON


def random_table(rng, count, *, zone="UTC", unit="us"):
    def times(share_of_nulls):
        hours = rng.integers(-4, 5, count)
        nulls = rng.random(count) < share_of_nulls
        stamps = [NOON + timedelta(hours=int(hour)) for hour in hours]
        return pa.array(stamps, pa.timestamp("us", tz="UTC"), mask=nulls).cast(pa.timestamp(unit, tz=zone))

    return pa.table(
        {
            "a": pa.array(rng.choice(["x", "y", "", None], count)),
            "b": pa.array(rng.integers(0, 3, count)),
            "event": times(0.1),
            "created": times(0.2),
            "row": np.arange(count),
            "vector": pa.array(rng.normal(size=(count, 2)).tolist(), pa.list_(pa.float32())),
        }
    )


def slow_latest(table, keys, created, start, end, keep):
    """Positions of the winning rows, in order."""
    best = {}
    event = epoch_nanoseconds(table["event"]).tolist()
    written = epoch_nanoseconds(table["created"]).tolist()
    bounds = [int(instant.timestamp()) * 10**9 if instant else None for instant in (start, end)]
    for row, values in enumerate(table.select(keys).to_pylist()):
        time = event[row]
        outside = (bounds[0] is not None and time < bounds[0]) or (bounds[1] is not None and time > bounds[1])
        if time == NO_TIME or outside:
            continue
        rank = (time, written[row] if created else 0, row if keep == "last" else -row)
        key = tuple(values.values())
        best[key] = max(best.get(key, (rank, row)), (rank, row))
    return sorted(row for _, row in best.values())


@pytest.mark.parametrize("keep", ["first", "last"])
@pytest.mark.parametrize("created", [None, "created"])
@pytest.mark.parametrize("keys", [["b"], ["a", "b"]])
def test_rows_are_those_of_a_loop(tmp_path, keys, created, keep):
    rng = np.random.default_rng(0)
    for turn, (zone, unit) in enumerate([("UTC", "us"), (None, "ms"), ("Asia/Tokyo", "ns"), ("UTC", "s")]):
        table = random_table(rng, 57, zone=zone, unit=unit)
        folder = tmp_path / str(turn)
        folder.mkdir()
        for part, (start, stop) in enumerate([(0, 20), (20, 21), (21, 57)]):
            pq.write_table(table.slice(start, stop - start), folder / f"{part}.parquet", row_group_size=9)
        dataset = pa_dataset.dataset(folder)
        for start, end in [(None, None), (NOON, None), (None, NOON), (NOON - timedelta(hours=1), NOON)]:
            expected = slow_latest(table, keys, created, start, end, keep)
            end = end.replace(tzinfo=None) if end and turn % 2 else end
            options = {"keys": keys, "timestamp": "event", "created": created, "start": start, "end": end}
            batches = list(
                latest_batches(dataset, columns=["vector", "row"], batch_rows=4, keep=keep, **options)
            )
            assert all(0 < len(batch) <= 4 for batch in batches)
            found = pa.Table.from_batches(batches)
            assert found["row"].to_pylist() == expected
            assert found.equals(table.select(["vector", "row"]).take(expected))
            if keep == "last":
                assert latest_rows(dataset, columns=["row"], **options)["row"].to_pylist() == expected


def test_nothing_is_left(tmp_path):
    table = random_table(np.random.default_rng(0), 5)
    pq.write_table(table.slice(0, 0), tmp_path / "empty.parquet")
    pq.write_table(table, tmp_path / "rows.parquet")
    dataset = pa_dataset.dataset(tmp_path)
    found = latest_rows(dataset, keys=["b"], timestamp="event", columns=["row"], end=NOON - timedelta(days=9))
    assert len(found) == 0
    assert found.column_names == ["row"]
