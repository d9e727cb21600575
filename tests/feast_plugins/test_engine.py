"""Feast with the fast engine leaves in Redis what stock Feast leaves there, byte for byte."""

import inspect
import json
import logging
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from feast import BatchFeatureView, Entity, FeatureStore, FeatureView, Field, FileSource
from feast.infra.offline_stores.dask import DaskOfflineStore, DaskOfflineStoreConfig, DaskRetrievalJob
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig
from feast.types import Array, Bytes, Float32, Float64, Int32, Int64, String
from feast.value_type import ValueType

from sda_features.feature_store.repo import open_feature_set, quiet_feast
from sda_features.feature_store.to_online import materialize_view
from sda_features.offline.schema import ID_TYPES
from sda_features.serving import codec
from tests.feast_repo import NOON, Rows, run_feast
from tests.serving.servers import cluster, sentinel

ENGINE = "sda_features.feast_plugins.engine.VectorEngine"
DATABASES = 7, 8  # of stock Feast and ours, in one project: keys and values can be compared as they are
EPOCH, END = datetime(1970, 1, 1, tzinfo=UTC), NOON + timedelta(days=400)
SCHEMA = {"item_id": String, "vector": Array(Float32), "packed": Bytes, "name": String}
TIMES, VECTOR = pa.timestamp("us", tz="UTC"), pa.list_(pa.float32())

pytestmark = pytest.mark.filterwarnings("ignore")  # stock Feast's dask announces its own deprecations


class HalfOfflineStoreConfig(DaskOfflineStoreConfig):
    type: str = f"{__name__}.HalfOfflineStore"


class HalfOfflineStore(DaskOfflineStore):
    """A team's own offline store: it leaves rows out."""

    @staticmethod
    def pull_latest_from_table_or_query(*arguments, **named):
        return half(DaskOfflineStore.pull_latest_from_table_or_query(*arguments, **named))

    @staticmethod
    def pull_all_from_table_or_query(*arguments, **named):
        return half(DaskOfflineStore.pull_all_from_table_or_query(*arguments, **named))


def half(job):
    def evaluate():
        rows = job.evaluation_function()
        return rows[rows["name"] < "row 5"].persist()

    return DaskRetrievalJob(evaluate, job.full_feature_names, job.repo_path)


class LoudRedisOnlineStoreConfig(RedisOnlineStoreConfig):
    type: str = f"{__name__}.LoudRedisOnlineStore"


class LoudRedisOnlineStore(RedisOnlineStore):
    """A team's own online store: it writes in capitals."""

    def online_write_batch(self, config, table, data, progress):
        for _, values, *_ in data:
            values["name"].string_val = values["name"].string_val.upper()
        super().online_write_batch(config, table, data, progress)


class Pair:
    """Two Feast stores over one registry and folder that differ in engine and database."""

    def __init__(
        self, folder, caplog, project, server, *, master=None, dbs=DATABASES, offline="file", **online
    ):
        self.folder, self.caplog = folder, caplog
        self.servers = [redis.Redis(*(master or server), db=db) for db in dbs]
        self.stores = []
        for db, engine in zip(dbs, ("local", ENGINE), strict=True):
            path = folder / f"{engine}.yaml"
            address = f"{server[0]}:{server[1]}" + (f",db={db}" if db else "")
            path.write_text(
                f"project: {project}\nprovider: local\nregistry: registry.db\nbatch_engine: {{type: {engine}}}\n"
                f"offline_store: {{type: {offline}}}\n"
                f"online_store: {json.dumps({'type': 'redis', 'connection_string': address} | online)}\n"
            )
            with quiet_feast():
                self.stores.append(FeatureStore(repo_path=str(folder), fs_yaml_file=path))
        for connection in self.servers:
            connection.flushdb()

    def apply(
        self, schema, *, keys=("item_id",), value_type=ValueType.STRING, view_class=FeatureView, **more
    ):
        names = ("created_timestamp_column", "field_mapping")
        renamed = {name: more.pop(name) for name in names if name in more}
        source = FileSource(name="source", path="rows", timestamp_field="event_timestamp", **renamed)
        entities = [Entity(name=f"e_{key}", join_keys=[key], value_type=value_type) for key in keys]
        schema = [Field(name=name, dtype=dtype) for name, dtype in schema.items()]
        more |= {"ttl": timedelta(0), "online": True}
        view = view_class(name="view", entities=entities, schema=schema, source=source, **more)
        with quiet_feast():
            self.stores[0].apply([source, *entities, view])

    def fill(self, table=None, schema=None, **options):
        self.apply(schema or SCHEMA, **options)
        self.write(rows() if table is None else table)
        return self

    def write(self, table, name="part"):
        (self.folder / "rows").mkdir(exist_ok=True)
        pq.write_table(table, self.folder / "rows" / f"{name}.parquet", row_group_size=5)

    def materialize(self, start=EPOCH, end=END, *, path="fast"):
        """What both databases hold after stock Feast and ours, on this path, have materialized: the same."""
        self.caplog.clear()
        with quiet_feast():
            for store in self.stores:
                store.materialize(start, end, feature_views=["view"])
        stock, ours = map(contents, self.servers)
        assert ours == stock
        assert paths_taken(self.caplog) == [path]
        return ours


def contents(server):
    """Every key, with its fields in their order."""
    return {key: list(server.hgetall(key).items()) for key in sorted(server.keys())}


@pytest.fixture
def make_pair(tmp_path, caplog, redis_server, new_project):
    caplog.set_level(logging.INFO, "sda_features.feast_plugins.engine")
    return lambda server=redis_server, **options: Pair(tmp_path, caplog, new_project(), server, **options)


def paths_taken(caplog):
    """For each materialisation with our engine: fast or stock."""
    messages = [record.message for record in caplog.records if record.name.endswith("engine")]
    return ["fast" if "rows written" in message else "stock" for message in messages]


def rows(count=12, *, id_type="string", hours=None, seed=0):
    """Rows with a null in each feature."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(count, 7)).astype(np.float32)
    row = np.arange(count)
    hours = range(count) if hours is None else hours
    return pa.table(
        {
            "item_id": pa.array(range(count)).cast(ID_TYPES[id_type]),
            "vector": pa.array(list(matrix), VECTOR, mask=row == 1),
            "packed": pa.array(codec.pack_vectors(matrix, "int8"), pa.binary(), mask=row == 2),
            "name": pa.array([f"row {number}" for number in row], mask=row == 3),
            "event_timestamp": pa.array([NOON + timedelta(hours=float(hour)) for hour in hours], TIMES),
        }
    )


@pytest.mark.parametrize(("id_type", "key"), [("string", String), ("int32", Int32), ("int64", Int64)])
def test_hashes_are_those_of_stock_feast(make_pair, id_type, key):
    schema, value_type = SCHEMA | {"item_id": key}, ValueType[id_type.upper()]
    pair = make_pair().fill(rows(id_type=id_type), schema, value_type=value_type)
    assert len(pair.materialize()) == 12
    # Older, as new, and newer rows in a second part, of which the newest win.
    hours = [-1, 1, 3, 3, 3, 5, 7, 7, 7, 9, 11, 11]
    pair.write(rows(id_type=id_type, hours=hours, seed=1).slice(0, 10), name="second")
    for end in (NOON + timedelta(hours=4), END):
        pair.materialize(end=end)


def test_rows_of_one_time(make_pair):
    """Which row wins is a matter of stock Feast's sorting; in a small table it is the first."""
    pair = make_pair().fill(rows(4, hours=[0] * 4))
    pair.write(rows(4, hours=[0] * 4, seed=1), name="second")
    pair.materialize()


def test_windows_include_both_ends(make_pair):
    written = make_pair().fill().materialize(NOON + timedelta(hours=3), NOON + timedelta(hours=6))
    assert len(written) == 4


def test_created_timestamps_renamed_columns_and_settings(make_pair):
    pair = make_pair(key_ttl_seconds=1000, skip_dedup=True)
    pair.apply(
        {"pid": String, "embedding": Array(Float32), "name": String},
        keys=["pid"],
        created_timestamp_column="created",
        field_mapping={"item_id": "pid", "vector": "embedding", "event_timestamp": "event_timestamp"},
    )
    for part, created in enumerate([5, 9, 7]):
        stamps = pa.array([NOON + timedelta(hours=created)] * 12, TIMES)
        pair.write(rows(seed=part, hours=[0] * 12).append_column("created", stamps), name=f"part{part}")
    assert len(pair.materialize()) == 12
    assert all(900 < server.ttl(key) <= 1000 for server in pair.servers for key in server.scan_iter())


@pytest.mark.parametrize(
    ("offline", "fewer"),
    [
        (f"{__name__}.HalfOfflineStore", True),  # a team's own is asked
        ("sda_features.feast_plugins.offline_store.VectorFileOfflineStore", False),
    ],
)
def test_other_offline_stores(make_pair, offline, fewer):
    written = make_pair(offline=offline).fill().materialize()
    assert len(written) > 0
    assert (len(written) < 12) == fewer


@pytest.mark.slow
def test_a_master_that_a_sentinel_names(make_pair, tmp_path, redis_server):
    with sentinel(tmp_path, redis_server[1], "shop_master") as port:
        options = {"redis_type": "redis_sentinel", "sentinel_master": "shop_master"}
        pair = make_pair((redis_server[0], port), master=redis_server, **options).fill()
        assert len(pair.materialize()) == 12


@pytest.mark.slow
def test_a_cluster(make_pair, caplog):
    """Stock Feast and the engine write the same rows, which lie on all nodes."""
    with cluster() as ports:
        nodes = [redis.Redis("127.0.0.1", port) for port in ports]
        pair = make_pair(("127.0.0.1", ports[0]), dbs=(0, 0), redis_type="redis_cluster").fill()
        written = []
        for store in pair.stores:
            with quiet_feast():
                store.materialize(EPOCH, END, feature_views=["view"])
            assert all(node.keys() for node in nodes)
            written.append({key: node.hgetall(key) for node in nodes for key in node.scan_iter()})
            for node in nodes:
                node.flushall()
    assert len(written[0]) == 12
    assert written[0] == written[1]
    assert paths_taken(caplog) == ["fast"]


def test_an_online_store_that_writes_in_its_own_way(make_pair):
    written = make_pair(type=f"{__name__}.LoudRedisOnlineStore").fill().materialize(path="stock")
    assert any(b"ROW 5" in value for fields in written.values() for _, value in fields)


def with_vectors(vectors):
    return rows().set_column(1, "vector", vectors)


def shout(frame):
    return frame.assign(name=frame["name"].str.upper())


VECTORS = {"item_id": String, "vector": Array(Float32)}
SHOPS = rows().append_column("shop", pa.array(list("ab") * 6))
PRICES = rows().append_column("price", pa.array(range(12)))
DOUBLES = rows()["vector"].cast(pa.list_(pa.float64()))
NULLS = pa.array([[1.0, 2.0]] * 11 + [[1.0, None]], VECTOR)
SHOUTED = {"mode": "pandas", "udf": shout, "udf_string": inspect.getsource(shout)}


@pytest.mark.parametrize(
    ("schema", "table", "options"),
    [
        pytest.param(SCHEMA | {"shop": String}, SHOPS, {"keys": ["item_id", "shop"]}, id="several keys"),
        pytest.param(VECTORS | {"price": Int64}, PRICES, {}, id="a number"),
        pytest.param(VECTORS, with_vectors(DOUBLES), {}, id="doubles"),
        pytest.param(VECTORS | {"vector": Array(Float64)}, rows(), {}, id="declared doubles"),
        pytest.param(VECTORS, with_vectors(NULLS), {}, id="nulls in a vector"),
        pytest.param(SCHEMA, rows(), {"view_class": BatchFeatureView, **SHOUTED}, id="transformation"),
        pytest.param(SCHEMA, rows(), {"enable_validation": True}, id="validation"),
    ],
)
def test_other_views_go_through_stock_feast(make_pair, schema, table, options):
    pair = make_pair().fill(table, schema, **options)
    assert len(pair.materialize(path="stock")) == 12


def test_a_vector_index_goes_through_stock_feast(make_pair):
    pair = make_pair().fill(schema={"item_id": String, "name": String})
    view = pair.stores[0].get_feature_view("view")
    view.schema.append(Field(name="vector", dtype=Array(Float32), vector_index=True, vector_length=7))
    view.features.append(view.schema[-1])
    pair.stores[0].apply([view])
    assert len(pair.materialize(path="stock")) == 12


def test_folders_with_other_files_go_through_stock_feast(make_pair):
    pair = make_pair().fill()
    (pair.folder / "rows" / "README.md").write_text("a note")
    assert len(pair.materialize(path="stock")) == 12


def test_views_without_online_rows_and_entities_without_keys(make_pair):
    pair = make_pair().fill(schema={"vector": Array(Float32), "name": String}, keys=())
    assert len(pair.materialize(path="stock")) == 1


def test_errors_are_those_of_stock_feast(make_pair):
    pair = make_pair().fill()
    key = next(iter(pair.materialize()))
    for store, server in zip(pair.stores, pair.servers, strict=True):
        server.flushdb()
        server.set(key, "no hash")
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"), quiet_feast():
            store.materialize(EPOCH, END, feature_views=["view"])
        server.delete(key)
        with quiet_feast():
            store.materialize(EPOCH, END, feature_views=["view"])
        assert len(server.keys()) == 12


@pytest.mark.slow
def test_the_feast_command(make_pair):
    """`feast materialize` in a repo that names the engine."""
    pair = make_pair().fill()
    stock = pair.materialize()
    pair.servers[1].flushdb()
    ends = "1970-01-01T00:00:00", "2030-01-01T00:00:00"
    printed = run_feast("-f", f"{ENGINE}.yaml", "materialize", *ends, cwd=pair.folder)
    assert "view" in printed
    assert contents(pair.servers[1]) == stock


def test_materialize_view_takes_the_fast_path_in_a_stock_repo(make_repo, caplog, capfd):
    caplog.set_level(logging.INFO, "sda_features.feast_plugins.engine")
    repo = make_repo(rows=Rows.random(list("abcdefg")))
    done = materialize_view(repo, "sda", progress=True)
    assert (done.rows, done.checked) == (7, 7)
    assert paths_taken(caplog) == ["fast"]
    assert "writing online: 100%" in capfd.readouterr().err
    materialized = open_feature_set(repo, "sda").view.materialization_intervals
    assert [interval[1] for interval in materialized] == [done.end]
