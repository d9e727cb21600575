"""Hashes that the writer leaves in Redis, compared with those of stock Feast's own write."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
import redis
from feast import Entity, FeatureView, Field, FileSource, RepoConfig
from feast.infra.online_stores.redis import RedisOnlineStore
from feast.types import Array, Bytes, Float32, String, from_value_type
from feast.utils import _convert_arrow_to_proto
from feast.value_type import ValueType
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster, key_slot
from redis.retry import Retry

from sda_features.online import writer as redis_writer
from sda_features.online.commands import UnsupportedRows
from sda_features.online.writer import OnlineView, delete_view_keys, write_batches
from sda_features.serving import EmbeddingClient, codec, layout
from tests.serving.servers import cluster, move_slot

STOCK_DB, OUR_DB = 5, 6  # one project name, two databases: keys and values can be compared as they are
NOON = 1_714_564_800_000_000  # microseconds
TIME = pa.timestamp("us", tz="UTC")
IDS = {
    "string": ["a", "", "ключ", "😀" * 9, "a b\r\n$3", "x" * 300, "0", "None"],
    "int32": [0, 1, -1, 2**31 - 1, -(2**31), 7, 8, 9],
    "int64": [0, 1, -1, 2**63 - 1, -(2**63), 7, 8, 9],
}
FEATURES = {"vector": Array(Float32), "packed": Bytes, "name": String}
VIEW = OnlineView("shop", "view", tuple(FEATURES))


@pytest.fixture
def servers(redis_server):
    """Clients of two empty databases: stock Feast's and ours."""
    with redis.Redis(*redis_server, db=STOCK_DB) as stock, redis.Redis(*redis_server, db=OUR_DB) as ours:
        stock.flushdb()
        ours.flushdb()
        yield stock, ours


@pytest.fixture
def server(servers):
    """A client of our database."""
    return servers[1]


@pytest.fixture
def both(redis_server, servers):
    """Write a table with stock Feast and with the writer: the two databases hold the same.

    Returns what they hold, and how many rows the writer wrote.
    """
    store = RedisOnlineStore()

    def write(table, *, project="shop", id_type="string", **online):
        address = f"{redis_server[0]}:{redis_server[1]},db={STOCK_DB}"
        config = RepoConfig(
            project=project,
            registry="unused",
            provider="local",
            entity_key_serialization_version=3,
            online_store={"type": "redis", "connection_string": address, **online},
        )
        value_type = ValueType[id_type.upper()]
        entity = Entity(name="item", join_keys=["item_id"], value_type=value_type)
        key = Field(name="item_id", dtype=from_value_type(value_type))
        names = tuple(name for name in FEATURES if name in table.schema.names)
        features = [Field(name=name, dtype=FEATURES[name]) for name in names]
        source = FileSource(path="unused", timestamp_field="event_timestamp")
        view = FeatureView(name="view", entities=[entity], schema=[key, *features], source=source)
        view.entity_columns = [key]
        rows = _convert_arrow_to_proto(table.combine_chunks(), view, {"item_id": value_type})
        store.online_write_batch(config, view, rows, None)
        written = write_batches(
            servers[1],
            OnlineView(project, "view", names, id_type=id_type),
            table.to_batches(),
            expire=online.get("key_ttl_seconds"),
            overwrite=online.get("skip_dedup", False),
        )
        stock, ours = map(contents, servers)
        assert ours == stock
        return ours, written

    return write


def contents(server):
    """Every key, with its fields in their order."""
    return {key: list(server.hgetall(key).items()) for key in sorted(server.keys())}


def table_of(ids, dim=3, *, times=None, id_type="string", seed=0, vector_type=None):
    """Rows with a null in each feature, and numbers of every size."""
    rng = np.random.default_rng(seed)
    count = len(ids)
    bits = rng.integers(0, 2**32, (count, dim), np.uint32)
    bits[np.isnan(bits.view(np.float32))] |= 1 << 22  # Feast quiets a signalling NaN
    matrix = bits.view(np.float32)  # infinities and denormals, too
    vectors = [None if row == 1 else matrix[row] for row in range(count)]
    packed = [
        None if row == 2 else codec.pack_vectors(np.sign(np.nan_to_num(matrix[row : row + 1])), "float16")[0]
        for row in range(count)
    ]
    names = [None if row == 3 else "имя" * (row * 30) for row in range(count)]
    stamps = times if times is not None else NOON + np.arange(count)
    return pa.table(
        {
            "item_id": pa.array(ids, pa.type_for_alias(id_type)),
            "vector": pa.array(vectors, vector_type or pa.list_(pa.float32())),
            "packed": pa.array(packed, pa.binary()),
            "name": pa.array(names, pa.string()),
            "event_timestamp": pa.array(stamps, TIME),
        }
    )


@pytest.mark.parametrize("id_type", IDS)
@pytest.mark.parametrize("dim", [1, 31, 32, 4095, 4096])
def test_every_length_of_header_and_every_kind_of_id(both, dim, id_type):
    stored, written = both(table_of(IDS[id_type], dim, id_type=id_type), id_type=id_type)
    assert written == len(stored) == 8


@pytest.mark.parametrize("project", ["shop", "магазин", "4shop_", "x" * 100])
def test_any_project_name(both, project):
    both(table_of(IDS["string"]), project=project)


@pytest.mark.parametrize(
    "types",
    [
        {"vector": pa.large_list(pa.float32()), "packed": pa.large_binary(), "name": pa.large_string()},
        {"vector": pa.list_(pa.float32(), 3), "item_id": pa.large_string()},
        {"event_timestamp": pa.timestamp("ns", tz="Asia/Tokyo")},
        {"event_timestamp": pa.timestamp("us")},
        {"event_timestamp": pa.timestamp("ms", tz="UTC")},
    ],
)
def test_any_arrow_form_of_a_column(both, types):
    table = table_of(IDS["string"], times=[NOON // 1000 * 1000 + 1000 * row for row in range(8)])
    for name, data_type in types.items():
        column = pa.array(table[name].to_pylist(), data_type)
        table = table.set_column(table.schema.get_field_index(name), name, column)
    both(table)


@pytest.mark.parametrize("vector_type", [pa.list_(pa.float32()), pa.list_(pa.float32(), 3)])
def test_slices_and_chunks(both, vector_type):
    table = table_of([f"id {row}" for row in range(70)], vector_type=vector_type)
    pieces = pa.concat_tables([table.slice(1, 3), table.slice(4, 0), table.slice(9, 50), table.slice(63)])
    assert pieces["vector"].num_chunks > 2
    assert pieces["vector"].chunk(0).offset
    stored, _ = both(pieces)
    assert len(stored) == 60


def test_more_rows_than_are_on_their_way_at_once(both, monkeypatch):
    monkeypatch.setattr(redis_writer, "CHUNK_ROWS", 7)
    table = table_of([f"id {row}" for row in range(100)])
    assert both(table)[1] == 100
    assert both(table)[1] == 0


def test_ragged_and_empty_vectors(both):
    vectors = pa.array([[1, 2], [], None, [3] * 40], pa.list_(pa.float32()))
    times = pa.array([NOON] * 4, TIME)
    table = pa.table({"item_id": list("abcd"), "vector": vectors, "event_timestamp": times})
    both(table)


@pytest.mark.parametrize("online", [{}, {"skip_dedup": True}])
def test_older_equal_and_newer_rows(both, online):
    instants = [NOON, NOON + 1, NOON - 1, 0, 1, -1, -5_000_001, 1_000_000]
    first = table_of(IDS["string"], times=[NOON] * 8)
    both(first, **online)
    both(first, **online)
    _, written = both(table_of(IDS["string"], times=instants, seed=1), **online)
    assert written == (8 if online else 1)
    for seed, time in enumerate([-1, -7, 0, -3, 2, 1]):
        both(table_of(["before 1970"], times=[time], seed=seed), **online)


def test_key_ttl_seconds(both, servers):
    first = table_of(IDS["string"], times=[NOON] * 8)
    both(first, key_ttl_seconds=1000)
    for server in servers:
        for key in server.scan_iter():
            server.persist(key)
    second = table_of(IDS["string"], times=[NOON + (row % 2) for row in range(8)], seed=1)
    _, written = both(second, key_ttl_seconds=500)
    assert written == 4
    lifetimes = [{key: server.ttl(key) > 400 for key in server.scan_iter()} for server in servers]
    assert lifetimes[0] == lifetimes[1]
    assert sorted(lifetimes[1].values()) == [False] * 4 + [True] * 4  # a row that stays is not prolonged


def test_a_hash_keeps_the_fields_of_other_views(server):
    view, other = OnlineView("shop", "view", ("name",)), OnlineView("shop", "view_2", ("name",))
    (key,) = view.keys(["a"])
    table = table_of(["a"], times=[NOON]).select(["item_id", "name", "event_timestamp"])
    write_batches(server, other, table.to_batches())
    before = server.hgetall(key)
    write_batches(server, view, table.to_batches())
    assert before.items() <= server.hgetall(key).items()
    assert len(server.hgetall(key)) == 4


def test_what_only_stock_feast_writes_is_refused(server):
    table = table_of(["a", "b"])
    view = OnlineView("shop", "view", ("vector",))
    for name, values, message in [
        ("item_id", pa.array(["a", None]), "item_id in every row"),
        ("vector", pa.array([[1.0, None], [2.0, 3.0]], pa.list_(pa.float32())), "every place of a vector"),
        ("vector", pa.array([[1.0], [2.0]], pa.list_(pa.float64())), "list<float32>, string or binary"),
        ("event_timestamp", pa.array([NOON, None], TIME), "event timestamp in every row"),
    ]:
        wrong = table.set_column(table.schema.get_field_index(name), name, values)
        with pytest.raises(UnsupportedRows, match=message):
            write_batches(server, view, wrong.to_batches())
    assert not server.keys()
    null_outside = pa.array([[None], [1.0], [None]], pa.list_(pa.float32())).slice(1, 1)
    one = table.slice(0, 1).set_column(1, "vector", null_outside)
    assert write_batches(server, view, one.to_batches()) == 1


def test_no_rows(server):
    assert write_batches(server, VIEW, []) == 0
    assert write_batches(server, VIEW, table_of([]).to_batches()) == 0
    assert delete_view_keys(server, VIEW, []) == 0


def test_delete_touches_one_view_of_one_project(server, monkeypatch):
    monkeypatch.setattr(redis_writer, "CHUNK_ROWS", 3)
    ids = [f"id {row}" for row in range(8)]
    table = table_of(ids, times=[NOON] * 8)
    for project, view in itertools.product(("shop", "coffeeshop", "shop_2"), ("view", "view_2")):
        write_batches(server, OnlineView(project, view, VIEW.features), table.to_batches())
    write_batches(server, VIEW, table_of(["only here"], times=[NOON]).to_batches())
    before = contents(server)
    assert delete_view_keys(server, VIEW, VIEW.keys([*ids[:5], "unknown", "only here"])) == 6
    after = contents(server)
    touched = set(VIEW.keys([*ids[:5], "only here"]))
    gone = {VIEW.time_field, *VIEW.fields}
    for key, fields in before.items():
        kept = {field: value for field, value in fields if not (key in touched and field in gone)}
        assert dict(after.get(key, [])) == kept
    assert VIEW.keys(["only here"])[0] not in after
    assert delete_view_keys(server, VIEW, VIEW.keys(ids[:5])) == 0


def test_integer_ids_are_deleted(both, server):
    both(table_of(IDS["int64"], id_type="int64"), id_type="int64")
    view = OnlineView("shop", "view", ("name", "packed", "vector"), id_type="int64")
    assert delete_view_keys(server, view, view.keys(IDS["int64"])) == 8
    assert not server.keys()


def test_a_connection_that_is_lost_on_the_way(redis_server, server, monkeypatch):
    """The server ends the connection between two batches: nothing is lost, and the client goes on."""
    monkeypatch.setattr(redis_writer, "CHUNK_ROWS", 10)
    table = table_of([f"id {row}" for row in range(200)])
    write_batches(server, VIEW, table.to_batches())
    expected = contents(server)
    for retries, lost in ((3, 3), (0, 1)):
        server.flushdb()
        retry = Retry(NoBackoff(), retries)
        with redis.Redis(*redis_server, db=OUR_DB, client_name="writer", retry=retry) as client:

            def batches(lost=lost):
                for number, batch in enumerate(table.to_batches(max_chunksize=10)):
                    if number in (5, 11, 12)[:lost]:
                        kill(server, "writer")
                    yield batch

            if retries:
                assert write_batches(client, VIEW, batches()) >= 200 - 40
                assert contents(server) == expected
            else:
                with pytest.raises(redis.ConnectionError):
                    write_batches(client, VIEW, batches())
                assert 0 < len(server.keys()) < 200
            assert client.ping()
            assert write_batches(client, VIEW, table.to_batches()) >= 0
            assert contents(server) == expected


def test_an_error_reply_is_raised_and_leaves_a_clean_connection(server, monkeypatch):
    monkeypatch.setattr(redis_writer, "CHUNK_ROWS", 2)
    view = OnlineView("shop", "view", ("vector",))
    ids = [f"id {row}" for row in range(20)]
    server.set(view.keys(ids)[6], "no hash")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        write_batches(server, view, table_of(ids).to_batches())
    assert server.ping()
    assert server.get(view.keys(ids)[6]) == b"no hash"


def test_writers_side_by_side(server):
    """Threads share a client: each run has a connection of its own."""
    tables = [table_of([f"{part} {row}" for row in range(300)], seed=part) for part in range(4)]

    def write(table):
        write_batches(server, VIEW, table.to_batches())

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, tables))
    together = contents(server)
    assert len(together) == 1200
    server.flushdb()
    for table in tables:
        write(table)
    assert contents(server) == together


def kill(server, name):
    """End the connections of a client, as a failing network does."""
    for client in server.client_list():
        if client["name"] == name:
            server.client_kill_filter(_id=client["id"])


def test_keys_that_have_moved_to_another_node_are_written_and_deleted_there():
    """The client still believes what it knew when it connected."""
    view = OnlineView("moves", "view", layout.FEATURES)
    ids = [str(number) for number in range(50)]
    ones = pa.array([[1, 1, 1]] * 50, pa.list_(pa.float32()))
    columns = {layout.TEXT: ones, layout.IMAGE: ones, layout.VERSION: ["v1"] * 50}
    table = pa.table({"item_id": ids, **columns, "event_timestamp": pa.array([NOON] * 50, TIME)})
    with cluster() as ports, RedisCluster("127.0.0.1", ports[0]) as client:
        for key in view.keys(ids[::5]):
            slot = key_slot(key)
            owner = int(client.nodes_manager.get_node_from_slot(slot).port)
            move_slot(client, slot, next(port for port in ports if port != owner))
        assert write_batches(client, view, table.to_batches()) == 50
        reader = EmbeddingClient(client, project="moves", view="view")
        assert reader.get(ids).text_found.all()
        assert delete_view_keys(client, view, view.keys(ids)) == 50
