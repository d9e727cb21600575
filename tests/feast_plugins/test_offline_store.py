"""The vector offline store against stock Feast on the same files: same rows, same values."""

import logging
import shutil
from datetime import timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.infra.offline_stores.dask import DaskOfflineStore
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Bytes, Float32, Float64, Int64, String

from sda_features.feast_plugins.offline_store import VectorFileOfflineStore
from sda_features.feast_plugins.point_in_time import NO_KEY, NOT_YET, point_in_time_rows
from sda_features.feature_store.repo import quiet_feast
from tests.contracts.stores import EPOCH, NOON, OURS, STOCK, open_stores

pytestmark = pytest.mark.filterwarnings("ignore")  # stock Feast's dask announces its own deprecations

END = NOON + timedelta(days=400)
LOGGER = "sda_features.feast_plugins.offline_store"
DIM = 3
LIST, LARGE, FIXED = pa.list_(pa.float32()), pa.large_list(pa.float32()), pa.list_(pa.float32(), DIM)


def hours(*values):
    """Instants, so many hours after noon; None stays."""
    return [None if value is None else NOON + timedelta(hours=float(value)) for value in values]


def random_rows(rng, count, *, keys=6, ties=False, id_type="string", vector=LIST):
    """Rows of a few keys with vectors, nulls among them, at random times; `ties` lets times repeat."""
    numbers = rng.integers(0, keys, count)
    ids = pa.array([f"k{number}" for number in numbers]) if id_type == "string" else pa.array(numbers)
    lists = [None if rng.random() < 0.2 else rng.normal(size=DIM).tolist() for _ in range(count)]
    times = rng.integers(0, 5, count) if ties else rng.permutation(count)
    return pa.table(
        {
            "pid": ids,
            "vector": pa.array(lists, vector),
            "label": pa.array([None if rng.random() < 0.2 else f"l{row}" for row in range(count)]),
            "size": pa.array(np.arange(count)),
            "share": pa.array(np.where(rng.random(count) < 0.2, np.nan, rng.random(count))),
            "raw": pa.array([b"\x00%d" % row for row in range(count)], pa.binary()),
            "event_timestamp": pa.array(hours(*times), pa.timestamp("us", tz="UTC")),
            "created": pa.array(hours(*rng.permutation(count)), pa.timestamp("us", tz="UTC")),
        }
    )


FEATURES = {"vector": Array(Float32), "label": String, "size": Int64, "share": Float64, "raw": Bytes}


@pytest.fixture
def repo(tmp_path, redis_server):
    """Two Feast stores over one folder and registry, stock and ours, and a writer of their views."""
    return Repo(tmp_path, redis_server)


class Repo:
    def __init__(self, folder, server):
        self.folder = folder
        stock, ours = open_stores(folder, "p", server, STOCK, OURS)
        self.stores = {"stock": stock, "ours": ours}

    def apply(self, *objects):
        with quiet_feast():
            self.stores["stock"].apply([*objects])
        for store in self.stores.values():
            store.refresh_registry()

    def add(self, name, *tables, id_type="string", ttl=0, created=True):
        """Write `tables` as parts of a view and apply it."""
        parts = self.folder / name
        parts.mkdir()
        for number, table in enumerate(tables):
            pq.write_table(table, parts / f"{number}.parquet", row_group_size=7)
        source = FileSource(
            name=f"{name}_source",
            path=name,
            timestamp_field="event_timestamp",
            created_timestamp_column="created" if created else "",
            field_mapping={"pid": "item_id"},
        )
        dtypes = {"item_id": String if id_type == "string" else Int64, **FEATURES}
        schema = [Field(name=field, dtype=dtype) for field, dtype in dtypes.items()]
        entity = Entity(name="item", join_keys=["item_id"], value_type=ValueType[id_type.upper()])
        ttl = timedelta(hours=ttl)
        view = FeatureView(name=name, entities=[entity], source=source, ttl=ttl, schema=schema)
        self.apply(entity, source, view)
        return source

    def pull(self, source, *, latest=True, start=EPOCH, end=END, created=True, columns=(*FEATURES,)):
        """What both stores pull, as tables."""
        for name, store in (("stock", DaskOfflineStore), ("ours", VectorFileOfflineStore)):
            pull = store.pull_latest_from_table_or_query if latest else store.pull_all_from_table_or_query
            with quiet_feast():
                job = pull(
                    config=self.stores[name].config,
                    data_source=source,
                    join_key_columns=["pid"],
                    feature_name_columns=list(columns),
                    timestamp_field="event_timestamp",
                    created_timestamp_column="created" if created else None,
                    start_date=start,
                    end_date=end,
                )
                yield job.to_arrow()

    def history(self, entities, features, **options):
        """What both stores join to an entity frame, as data frames."""
        for store in self.stores.values():
            with quiet_feast():
                yield store.get_historical_features(entities, features, **options).to_df()


def assert_same(expected, got, *, by=("pid", "event_timestamp")):
    """Same columns, rows and values, in any order; `expected` is not empty."""
    assert len(expected) > 0
    if isinstance(expected, pa.Table):
        expected, got = expected.to_pandas(), got.to_pandas()
    assert sorted(expected.columns) == sorted(got.columns)
    rows = [
        sorted((tuple(map(plain, row)) for row in frame[sorted(frame.columns)].to_numpy()), key=repr)
        for frame in (expected, got)
    ]
    assert rows[0] == rows[1]


def plain(value):
    """A cell that compares: lists as tuples of float32 bits, every kind of missing as None."""
    if isinstance(value, np.ndarray | list):
        return np.asarray(value, np.float32).tobytes()
    if isinstance(value, pd.Timestamp):
        return value.tz_convert("UTC").isoformat() if value.tzinfo else value.isoformat()
    return None if value is None or value != value else value


def reasons(caplog):
    return [record.getMessage() for record in caplog.get_records("call") if record.name == LOGGER]


@pytest.fixture
def fallbacks(caplog):
    """Reasons for which reads fell back."""
    return lambda: reasons(caplog)


@pytest.fixture(autouse=True)
def fast_only(request, caplog):
    """Fails a test whose reads fell back, unless it asks for `fallbacks`: it would compare stock with itself."""
    with caplog.at_level(logging.DEBUG, LOGGER):
        yield
    assert "fallbacks" in request.fixturenames or not reasons(caplog)


@pytest.mark.parametrize("vector", [LIST, LARGE, FIXED], ids=["list", "large", "fixed"])
@pytest.mark.parametrize("id_type", ["string", "int64"])
def test_latest_rows_over_several_parts(repo, vector, id_type):
    rng = np.random.default_rng(1)
    rows = random_rows(rng, 60, vector=vector, id_type=id_type)
    source = repo.add("view", *(rows.slice(start, 20) for start in (0, 20, 40)), id_type=id_type)
    for end in (END, *hours(30.5, 12)):
        stock, ours = repo.pull(source, end=end)
        assert_same(stock, ours)
        assert ours["vector"].type == LIST
        assert len(stock) < 60
    assert_same(*repo.pull(source, start=hours(20)[0], created=False, columns=["vector"]))
    assert_same(*repo.pull(source, start=hours(20)[0], end=hours(30)[0], latest=False))


def test_ties_are_decided_by_created_then_by_the_order_of_rows(repo):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        # Stock Feast's sort keeps the order of equal rows up to sixteen rows in one file.
        source = repo.add(f"view{seed}", random_rows(rng, 16, keys=3, ties=True))
        assert_same(*repo.pull(source))
        assert_same(*repo.pull(source, created=False))


def test_created_decides_where_stock_feast_leaves_it_to_chance(repo):
    """Sorted twice without keeping order, many rows of one time come in any order from stock Feast."""
    rows = random_rows(np.random.default_rng(0), 90, keys=4, ties=True)
    source = repo.add("view", rows.slice(0, 50), rows.slice(50))
    _, ours = repo.pull(source)
    frame = rows.to_pandas().sort_values(["event_timestamp", "created"], kind="stable")
    expected = frame.drop_duplicates("pid", keep="last")
    assert sorted(ours["size"].to_pylist()) == sorted(expected["size"])


def test_timestamps_without_a_zone_are_utc(repo):
    rows = random_rows(np.random.default_rng(2), 30)
    for name in ("event_timestamp", "created"):
        naive = rows[name].cast(pa.timestamp("ms", tz="UTC")).cast(pa.timestamp("ms"))
        rows = rows.set_column(rows.column_names.index(name), name, naive)
    source = repo.add("view", rows)
    for latest in (True, False):
        stock, ours = repo.pull(source, latest=latest, end=hours(17)[0])
        assert_same(stock, ours)
    entities = pd.DataFrame({"item_id": ["k0", "k1", "k2"], "event_timestamp": hours(20, 20, 3)})
    entities["event_timestamp"] = entities["event_timestamp"].dt.tz_localize(None)
    assert_same(*repo.history(entities, ["view:vector"]))


@pytest.mark.parametrize("id_type", ["string", "int64"])
@pytest.mark.parametrize("ttl", [0, 7])
def test_point_in_time_joins(repo, id_type, ttl):
    rng = np.random.default_rng(3)
    rows = random_rows(rng, 60, id_type=id_type, vector=FIXED)
    repo.add("first", *(rows.slice(start, 20) for start in (0, 20, 40)), id_type=id_type, ttl=ttl)
    repo.add("second", random_rows(rng, 40, keys=8, id_type=id_type), id_type=id_type, created=False)
    keys = [f"k{number}" for number in range(9)] if id_type == "string" else list(range(9))
    entities = pd.DataFrame(
        {
            "item_id": rng.choice(np.array(keys), 40),
            "event_timestamp": pd.to_datetime(hours(*rng.permutation(80)[:40] - 5.0)),
            "clicked": rng.integers(0, 2, 40),
        },
        index=rng.permutation(40),
    )
    stock, ours = repo.history(entities, [f"first:{feature}" for feature in FEATURES])
    assert len(stock) < 40, "no entity row lies before all rows of its key"
    assert stock["vector"].isna().any(), "no key without rows"
    assert_same(stock, ours)
    stock, ours = repo.history(
        entities, ["first:vector", "second:vector", "second:label"], full_feature_names=True
    )
    assert_same(stock, ours)
    assert list(ours.columns) == [*entities.columns, "first__vector", "second__vector", "second__label"]


def test_missing_ids_match_missing_ids(repo):
    rows = random_rows(np.random.default_rng(4), 20, keys=3)
    ids = pa.array([None if item_id == "k1" else item_id for item_id in rows["pid"].to_pylist()])
    source = repo.add("view", rows.set_column(0, "pid", ids))
    stock, ours = repo.pull(source)
    assert None in stock["pid"].to_pylist()
    assert_same(stock, ours)
    entities = pd.DataFrame({"item_id": ["k0", None, "nobody"], "event_timestamp": hours(50, 50, 50)})
    assert_same(*repo.history(entities, ["view:vector", "view:size"]))


def test_a_result_has_one_chunk_whatever_the_number_of_files(repo):
    """Feast's converters drop what comes after the first batch of a table."""
    rows = random_rows(np.random.default_rng(5), 60, keys=40)
    source = repo.add("view", rows.slice(0, 30), rows.slice(30))
    for latest in (True, False):
        _, ours = repo.pull(source, latest=latest)
        assert len(ours.to_batches()) == 1
    entities = pd.DataFrame({"item_id": ["k0", "k1"] * 10, "event_timestamp": hours(*range(60, 80))})
    with quiet_feast():
        table = repo.stores["ours"].get_historical_features(entities, ["view:vector"]).to_arrow()
    assert len(table.to_batches()) == 1


def test_what_is_outside_the_fast_path_is_stock_feast(repo, fallbacks):
    rows = random_rows(np.random.default_rng(6), 16)
    nulls = pa.array([[1.0, None]] * 16, pa.list_(pa.float32()))
    stamps = pa.array(hours(*range(15), None), pa.timestamp("us", tz="UTC"))
    tables = {
        "nested": rows.set_column(1, "vector", nulls),
        "created_null": rows.set_column(7, "created", stamps),
        "dictionary": rows.set_column(2, "label", rows["label"].dictionary_encode()),
        "nested_folders": rows,
    }
    for count, (name, table) in enumerate(tables.items(), 1):
        source = repo.add(name, table)
        if name == "nested_folders":
            (repo.folder / name / "more").mkdir()
        assert_same(*repo.pull(source))
        assert len(fallbacks()) == count, name


def test_a_source_without_files_fails_as_in_stock_feast(repo, fallbacks):
    source = repo.add("view", random_rows(np.random.default_rng(0), 5))
    pulled = repo.pull(source)
    next(pulled)  # stock reads; then the folder goes
    shutil.rmtree(repo.folder / "view")
    with pytest.raises(FileNotFoundError):
        next(pulled)
    assert len(fallbacks()) == 1


def test_entity_rows_that_repeat_are_stock_feasts_to_choose_from(repo, fallbacks):
    repo.add("view", random_rows(np.random.default_rng(7), 16))
    entities = pd.DataFrame(
        {"item_id": ["k0", "k0", "k1"], "event_timestamp": hours(99, 99, 99), "clicked": [0, 1, 0]}
    )
    stock, ours = repo.history(entities, ["view:vector"])
    assert len(ours) == len(stock) == 2
    assert fallbacks() == ["Read through stock Feast: entity rows that repeat"]


def test_aliased_entities(repo, fallbacks):
    repo.add("view", random_rows(np.random.default_rng(8), 30))
    view = repo.stores["ours"].get_feature_view("view")[["vector", "size"]]
    seen = view.with_name("seen").with_join_key_map({"item_id": "seen_id"})
    services = {
        "one": FeatureService(name="one", features=[seen]),
        "two": FeatureService(name="two", features=[seen, view.with_name("here")]),
    }
    repo.apply(*services.values())
    entities = pd.DataFrame(
        {"item_id": ["k0", "k1"], "seen_id": ["k2", "k3"], "event_timestamp": hours(99, 98)}
    )
    assert_same(*repo.history(entities, services["one"], full_feature_names=True))
    assert fallbacks() == []
    assert_same(*repo.history(entities, services["two"], full_feature_names=True))
    assert fallbacks() == ["Read through stock Feast: views with several join keys"]


def test_on_demand_views(repo, fallbacks):
    repo.add("view", random_rows(np.random.default_rng(8), 30))
    view = repo.stores["ours"].get_feature_view("view")

    @on_demand_feature_view(sources=[view], schema=[Field(name="twice", dtype=Int64)], mode="pandas")
    def doubled(inputs):
        return pd.DataFrame({"twice": inputs["size"] * 2})

    repo.apply(doubled)
    entities = pd.DataFrame({"item_id": ["k0", "k1"], "event_timestamp": hours(99, 98)})
    assert_same(*repo.history(entities, ["view:size", "doubled:twice"]))
    assert len(fallbacks()) == 1


def test_point_in_time_rows_against_a_loop():
    rng = np.random.default_rng(9)
    codes, times, created = (rng.integers(0, top, 50) for top in (4, 9, 3))
    wanted_codes, wanted_times = rng.integers(-1, 4, 80), rng.integers(-3, 12, 80)
    for ttl in (None, timedelta(0), timedelta(microseconds=4)):
        limit = 4000 if ttl else np.inf

        def newest(code, time, limit=limit):
            rows = [
                (times[row] * 1000, created[row], row)
                for row in range(50)
                if codes[row] == code and times[row] <= time
            ]
            if not rows or time * 1000 - max(rows)[0] > limit:
                return NOT_YET if code in codes else NO_KEY
            return max(rows)[2]

        got = point_in_time_rows(codes, times * 1000, created, wanted_codes, wanted_times * 1000, ttl)
        assert got.tolist() == [
            newest(code, time) for code, time in zip(wanted_codes, wanted_times, strict=True)
        ]
        assert {NO_KEY, NOT_YET} < set(got.tolist())
