"""What every pair of Feast stores must do, whoever wrote and whoever reads; a test module subclasses this."""

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sda_features.feature_store.repo import quiet_feast
from tests.feast_repo import NOON, config

EPOCH, END = datetime(1970, 1, 1, tzinfo=UTC), NOON + timedelta(days=30)
STOCK = ("redis", "file")
OURS = (
    "sda_features.feast_plugins.online_store.VectorRedisOnlineStore",
    "sda_features.feast_plugins.offline_store.VectorFileOfflineStore",
)
KINDS = {"stock": STOCK, "ours": OURS}
DIM = 5


def open_stores(folder, project, server, *kinds):
    """Feast stores of several kinds, (online, offline), over one project and registry."""
    from feast import FeatureStore

    stores = []
    for number, (online, offline) in enumerate(kinds):
        path = folder / f"store{number}.yaml"
        path.write_text(config(project, server, online) + f"offline_store: {{type: {offline}}}\n")
        stores.append(FeatureStore(repo_path=str(folder), fs_yaml_file=path))
    return stores


def vector_view(name, entity, *, ttl=timedelta(0)):
    """A view of vectors, strings and packed bytes, over a folder of its name, and its source."""
    from feast import FeatureView, Field, FileSource
    from feast.types import Array, Bytes, Float32, String

    source = FileSource(name=f"{name}_source", path=name, timestamp_field="event_timestamp")
    fields = {"item_id": String, "vector": Array(Float32), "version": String, "packed": Bytes}
    schema = [Field(name=field, dtype=dtype) for field, dtype in fields.items()]
    return source, FeatureView(name=name, entities=[entity], source=source, ttl=ttl, schema=schema)


def vector_rows(ids, time, *, seed=0, dim=DIM):
    """Rows with vectors of all sizes of number; the second vector is null, the third version."""
    rng = np.random.default_rng(seed)
    matrix = (rng.normal(size=(len(ids), dim)) * 10.0 ** rng.integers(-42, 30, (len(ids), dim))).astype("f4")
    matrix[0, 0] = -0.0
    vectors = [None if row == 1 else vector for row, vector in enumerate(matrix)]
    return pa.table(
        {
            "item_id": ids,
            "vector": pa.array(vectors, pa.list_(pa.float32())),
            "version": [None if row == 2 else f"v{seed}" for row in range(len(ids))],
            "packed": [b"\x00%d" % row for row in range(len(ids))],
            "event_timestamp": pa.array([time] * len(ids), pa.timestamp("us", tz="UTC")),
        }
    )


def bits(values):
    """Vectors as bytes, so that -0 is not 0; None stays."""
    return [None if value is None else np.asarray(value, np.float32).tobytes() for value in values]


@dataclass
class Pair:
    """A store that writes, one that reads, and the folder of their repo."""

    writer: object
    reader: object
    folder: object

    def apply(self, *objects, **options):
        with quiet_feast():
            self.writer.apply(list(objects), **options)
            self.reader.refresh_registry()

    def write(self, view, rows):
        """Add a file to the folder of a view."""
        folder = self.folder / view
        folder.mkdir(exist_ok=True)
        pq.write_table(rows, folder / f"{len(list(folder.iterdir()))}.parquet")

    def materialize(self, end=END):
        with quiet_feast():
            self.writer.materialize(EPOCH, end)

    def read(self, features, ids, **options):
        with quiet_feast():
            rows = [{"item_id": item_id} for item_id in ids]
            return self.reader.get_online_features(features, rows, **options).to_dict()


class StoreContract:
    """Runs with every pair of `KINDS`: one writes, the other reads."""

    ids = ("B001", "B 002", "ü/漢:3", "", "d")

    @pytest.fixture(params=itertools.product(KINDS, repeat=2), ids="{0[0]} writes, {0[1]} reads".format)
    def pair(self, request, tmp_path, redis_server, new_project):
        kinds = [KINDS[name] for name in request.param]
        return Pair(*open_stores(tmp_path, new_project(), redis_server, *kinds), tmp_path)

    @pytest.fixture
    def item(self):
        from feast import Entity, ValueType

        return Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)

    def test_what_is_materialized_is_read_bit_for_bit(self, pair, item):
        rows = vector_rows(self.ids, NOON)
        pair.apply(item, *vector_view("view", item))
        pair.write("view", rows)
        pair.materialize()
        read = pair.read(["view:vector", "view:version", "view:packed"], [*self.ids, "nobody", "d"])
        assert sorted(read) == ["item_id", "packed", "vector", "version"]
        stored = [*rows["vector"].to_pylist(), None, rows["vector"][4].as_py()]
        assert stored[1] is None
        assert bits(read["vector"]) == bits(stored)
        assert read["version"] == ["v0", "v0", None, "v0", "v0", None, "v0"]
        assert read["packed"] == [*rows["packed"].to_pylist(), None, b"\x004"]

    def test_the_newest_row_wins_in_whatever_order_rows_come(self, pair, item):
        pair.apply(item, *vector_view("view", item))
        for hours, ids in ((2, "abc"), (1, "abcd"), (3, "a")):
            rows = vector_rows(list(ids), NOON + timedelta(hours=hours), seed=hours)
            pair.write("view", rows)
        for end, expected in ((2.5, ["v2", "v2", None, "v1"]), (4, ["v3", "v2", None, "v1"])):
            pair.materialize(NOON + timedelta(hours=end))
            assert pair.read(["view:version"], "abcd")["version"] == expected

    def test_an_older_row_is_not_written_over_a_newer_one(self, pair, item):
        pair.apply(item, *vector_view("view", item))
        with quiet_feast():
            for hours in (2, 1):
                rows = vector_rows(self.ids, NOON + timedelta(hours=hours), seed=hours)
                pair.writer.write_to_online_store("view", rows.to_pandas())
        assert pair.read(["view:version"], self.ids)["version"] == ["v2", "v2", None, "v2", "v2"]

    def test_history(self, pair, item):
        source, view = vector_view("view", item, ttl=timedelta(hours=5))
        pair.apply(item, source, view)
        for hours in (0, 2):
            rows = vector_rows(["a", "b", "c"], NOON + timedelta(hours=hours), seed=hours)
            pair.write("view", rows)
        entities = pd.DataFrame({"item_id": [*"aaaaz"], "event_timestamp": [NOON] * 5, "clicked": range(5)})
        entities["event_timestamp"] += pd.to_timedelta([1, 3, -1, 8, 1], unit="h")
        with quiet_feast():
            job = pair.reader.get_historical_features(entities, ["view:vector", "view:version"])
            found = job.to_df().set_index("clicked").sort_index()
        assert found.index.tolist() == [0, 1, 4]  # row 2 lies before all rows of its key, row 3 is too late
        assert found["version"].tolist()[:2] == ["v0", "v2"]
        rows = [vector_rows(["a", "b", "c"], NOON, seed=seed)["vector"][0].as_py() for seed in (0, 2)]
        assert bits(found["vector"].tolist()[:2]) == bits(rows)
        assert found["vector"].isna().tolist() == [False, False, True]

    def test_a_view_that_is_deleted_takes_no_other_views_values_along(self, pair, item):
        (source, gone), (kept_source, kept) = (vector_view(name, item) for name in ("gone", "kept"))
        pair.apply(item, source, gone, kept_source, kept)
        for name in ("gone", "kept"):
            pair.write(name, vector_rows(self.ids, NOON))
        pair.materialize()
        both = ["gone:version", "kept:version"]
        read = pair.read(both, self.ids, full_feature_names=True)
        assert read["gone__version"] == read["kept__version"] == ["v0", "v0", None, "v0", "v0"]
        pair.apply(item, kept_source, kept, objects_to_delete=[gone], partial=False)
        assert pair.read(["kept:version"], self.ids)["version"] == read["kept__version"]
