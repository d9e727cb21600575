"""The vector online store against stock Feast on the same server: same responses, field by field."""

import asyncio
import copy
import json
import pickle
import subprocess
import time
import urllib.request
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float32, Int64, String

from sda_features.errors import FeatureMismatchError
from sda_features.feast_plugins.online_response import VectorOnlineResponse
from sda_features.feature_store.repo import quiet_feast
from sda_features.serving import codec
from sda_features.serving.blocks import Block
from sda_features.serving.embedded import free_port
from tests.contracts.stores import (
    NOON,
    OURS,
    STOCK,
    StoreContract,
    bits,
    open_stores,
    vector_rows,
    vector_view,
)
from tests.feast_repo import FEAST

pytestmark = pytest.mark.filterwarnings("ignore")  # stock Feast and what it imports announce deprecations

IDS = ["B001", "B 002", "ü/漢:3", "", "d"]
NUMBERS = [0, 1, -5, 2**40]


class TestStores(StoreContract):
    pass


@pytest.fixture(scope="module")
def shop(tmp_path_factory, redis_server, new_project):
    """Stock and our store over one project: string and integer items, a pair of keys, no key, on-demand."""
    folder = tmp_path_factory.mktemp("shop")
    stock, ours = open_stores(folder, new_project(), redis_server, STOCK, OURS)
    item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)
    number = Entity(name="number", join_keys=["number_id"], value_type=ValueType.INT64)
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    (_, first), (_, second) = (vector_view(name, item) for name in ("first", "second"))

    def view(name, *entities, **fields):
        source = FileSource(name=f"{name}_source", path=name, timestamp_field="event_timestamp")
        schema = [Field(name=field, dtype=dtype) for field, dtype in fields.items()]
        return FeatureView(name=name, entities=[*entities], source=source, schema=schema)

    views = [
        first,
        second,
        view("numbers", number, number_id=Int64, version=String),
        view("price", item, user, item_id=String, user_id=String, price=Float32),
        view("shared", price=Float32),
    ]

    @on_demand_feature_view(sources=[first], schema=[Field(name="length", dtype=Int64)], mode="pandas")
    def named(inputs):
        return pd.DataFrame({"length": inputs["version"].fillna("").str.len()})

    services = [
        FeatureService(name="both", features=[first[["vector", "version"]], second[["packed"]]]),
        FeatureService(name="renamed", features=[first.with_name("alias")[["vector"]]]),
    ]
    with quiet_feast():
        stock.apply([item, number, user, *views, named, *services])
        ours.refresh_registry()
        times = NOON + timedelta(microseconds=123_456)
        for seed, name in enumerate(("first", "second")):
            stock.write_to_online_store(name, vector_rows(IDS, times, seed=seed).to_pandas())
        frame = pd.DataFrame({"number_id": NUMBERS, "version": "v", "event_timestamp": times})
        stock.write_to_online_store("numbers", frame)
        frame = pd.DataFrame({"item_id": IDS, "user_id": "u", "price": 1.5, "event_timestamp": times})
        stock.write_to_online_store("price", frame)
    return stock, ours


def ask(shop, features, rows, **options):
    """The responses of the stock store and of ours."""
    responses = []
    with quiet_feast():
        for store in shop:
            wanted = store.get_feature_service(features) if isinstance(features, str) else features
            responses.append(store.get_online_features(wanted, rows, **options))
    return responses


def assert_same(stock, ours):
    """Equal in every form in which Feast gives a response."""
    for options in ({}, {"include_event_timestamps": True}):
        expected, got = stock.to_dict(**options), ours.to_dict(**options)
        assert repr(got) == repr(expected)  # the same order, types and signs of zero
        assert list(ours.to_df(**options).columns) == list(expected)
    assert ours.proto.SerializeToString(deterministic=True) == stock.proto.SerializeToString(
        deterministic=True
    )


ITEMS = [{"item_id": item_id} for item_id in [*IDS, "nobody", "d", "B001"]]
VECTORS = ["first:vector", "first:version"]


@pytest.mark.parametrize(
    ("features", "rows", "options"),
    [
        (VECTORS, ITEMS, {}),
        (["first:version", "first:vector", "first:packed"], ITEMS, {}),
        (VECTORS, {"item_id": IDS}, {}),
        (VECTORS, ITEMS, {"full_feature_names": True}),
        (["first:vector", "second:vector"], ITEMS, {"full_feature_names": True}),
        ("both", ITEMS, {}),
        ("both", ITEMS, {"include_feature_view_version_metadata": True}),
        ("renamed", ITEMS, {"full_feature_names": True}),
        (["numbers:version"], [{"number_id": number} for number in [*NUMBERS, 77]], {}),
    ],
)
def test_the_fast_path_answers_as_stock_feast_does(shop, features, rows, options):
    stock, ours = ask(shop, features, rows, **options)
    assert ours._recorded, "stock answered"
    assert_same(stock, ours)


@pytest.mark.parametrize(
    ("features", "rows"),
    [
        (["price:price"], [{"item_id": item_id, "user_id": "u"} for item_id in [*IDS, "nobody"]]),
        (["price:price", *VECTORS], [{"item_id": item_id, "user_id": "u"} for item_id in IDS]),
        (["shared:price"], [{"item_id": "d"}]),
        (["first:vector", "named:length"], ITEMS),
        (VECTORS, [{"item_id": item_id, "more": 1} for item_id in IDS]),
    ],
)
def test_other_requests_are_answered_by_stock_feast(shop, features, rows):
    stock, ours = ask(shop, features, rows)
    assert not ours._recorded
    assert_same(stock, ours)


@pytest.mark.parametrize(
    ("features", "rows"),
    [
        (["first:nothing"], ITEMS),
        (["nothing:vector"], ITEMS),
        (VECTORS, []),
        (VECTORS, [{"item_id": "a"}, {"id": "b"}]),
        (VECTORS, {"user_id": ["a"]}),
    ],
)
def test_errors_are_stock_feasts(shop, features, rows):
    errors = []
    for store in shop:
        with quiet_feast(), pytest.raises(Exception) as caught:
            store.get_online_features(features, rows).to_dict()
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]


def test_vectors_as_a_matrix(shop):
    _, ours = ask(shop, [*VECTORS, "first:packed"], ITEMS)
    matrix, found = ours.to_matrix("vector")
    expected = vector_rows(IDS, NOON)["vector"].to_pylist()
    rows = [*expected, None, expected[4], expected[0]]
    assert matrix.dtype == np.float32
    assert matrix.flags.c_contiguous
    assert found.tolist() == [row is not None for row in rows]
    assert [row.tobytes() for row in matrix] == [bits([row or [0.0] * 5])[0] for row in rows]
    with pytest.raises(FeatureMismatchError, match="one of .*'vector'.* got 'image'"):
        ours.to_matrix("image")
    with pytest.raises(FeatureMismatchError, match="expected a vector"):
        ours.to_matrix("version")
    nobody = ask(shop, VECTORS, [{"item_id": "nobody"}])[1]
    assert nobody.to_matrix("vector")[0].shape == (1, 0)


def test_values_of_the_sizes_that_came_before_are_received_as_a_block(shop):
    """The second of two like requests; one that turns out to be different is read as before."""
    known = [{"item_id": item_id} for item_id in ("B001", "d", "ü/漢:3")]
    null = [{"item_id": "B 002"}]
    for rows, block in (
        (known, None),
        (known, True),
        (ITEMS, False),
        (known, None),
        (known[::-1], True),
        (null, False),
        (null, True),
    ):
        stock, ours = ask(shop, ["first:vector", "first:packed"], rows)
        assert block in (None, isinstance(ours._recorded.rows, Block))
        expected = stock.to_dict()["vector"]
        matrix, found = ours.to_matrix("vector")
        assert found.tolist() == [vector is not None for vector in expected]
        assert matrix[found].tobytes() == b"".join(bits(vector for vector in expected if vector))
        assert_same(stock, ours)


def test_packed_vectors_as_a_matrix(shop):
    """float16 and int8 vectors are Bytes to Feast."""
    matrix = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    for dtype in ("float16", "int8"):
        packed = codec.pack_vectors(matrix, dtype)
        frame = pd.DataFrame(
            {"item_id": [f"{dtype}{row}" for row in range(3)], "packed": packed, "event_timestamp": NOON}
        ).assign(vector=None, version="v")
        with quiet_feast():
            shop[0].write_to_online_store("second", frame)
        stock, ours = ask(shop, ["second:packed"], {"item_id": [*frame["item_id"], "nobody"]})
        got, found = ours.to_matrix("packed")
        assert found.tolist() == [True, True, True, False]
        np.testing.assert_array_equal(got[:3], codec.unpack_vectors(packed, 7))
        assert_same(stock, ours)


def test_vectors_of_several_dimensions_come_as_lists_and_not_as_a_matrix(shop):
    with quiet_feast():
        shop[0].write_to_online_store("second", vector_rows(["wide"], NOON, dim=9).to_pandas())
    stock, ours = ask(shop, ["second:vector"], [{"item_id": "wide"}, {"item_id": "d"}])
    assert [len(vector) for vector in ours.to_dict()["vector"]] == [9, 5]
    assert_same(stock, ours)
    with pytest.raises(FeatureMismatchError, match="dimension"):
        ours.to_matrix("vector")


def test_a_response_is_made_of_the_bytes_of_its_request(shop):
    """Asked for its proto late, it does not read again."""
    _, ours = ask(shop, ["first:version"], [{"item_id": "late"}])
    with quiet_feast():
        shop[0].write_to_online_store("first", vector_rows(["late"], NOON).to_pandas())
    assert ours.to_dict()["version"] == [None]
    assert ours.proto.results[1].values[0].WhichOneof("val") is None
    assert ask(shop, ["first:version"], [{"item_id": "late"}])[1].to_dict()["version"] == ["v0"]


def test_responses_and_stores_can_be_copied(shop):
    stock, ours = ask(shop, VECTORS, ITEMS)
    for again in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):  # noqa: S301
        assert isinstance(again, VectorOnlineResponse)
        assert_same(stock, again)
        assert again.to_matrix("vector")[0].tobytes() == ours.to_matrix("vector")[0].tobytes()
    config = pickle.loads(pickle.dumps(shop[1].config))  # noqa: S301
    assert config.online_store == copy.deepcopy(shop[1].config).online_store == shop[1].config.online_store
    assert config.online_store.type == OURS[0]


def test_the_asyncio_twin(shop):
    async def read(store):
        asked = (ITEMS, VECTORS), ([{"item_id": "d", "user_id": "u"}], ["price:price"])
        try:
            return [await store.get_online_features_async(features, rows) for rows, features in asked]
        finally:  # Feast leaves its connections open
            await (
                await store._get_provider().online_store._get_client_async(store.config.online_store)
            ).aclose()

    with quiet_feast():
        stock, ours = (asyncio.run(read(store)) for store in shop)
    assert [bool(response._recorded) for response in ours] == [True, False]
    for expected, got in zip(stock, ours, strict=True):
        assert_same(expected, got)


@pytest.mark.slow
def test_feast_serve(shop):
    """Stock Feast's HTTP server answers with our store as with its own."""
    port = free_port()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/get-online-features",
        json.dumps({"features": VECTORS, "entities": {"item_id": [*IDS, "nobody"]}}).encode(),
        {"Content-Type": "application/json"},
    )
    command = [FEAST, "-f", "store1.yaml", "serve", "-h", "127.0.0.1", "-p", str(port), "--no-access-log"]
    with open(shop[1].repo_path / "serve.log", "w") as log:
        server = subprocess.Popen(command, cwd=shop[1].repo_path, stdout=log, stderr=log)
        try:
            for _ in range(120):
                time.sleep(0.5)
                try:
                    with urllib.request.urlopen(request, timeout=10) as reply:
                        answer = json.load(reply)
                    break
                except OSError:
                    assert server.poll() is None
        finally:
            server.terminate()
            server.wait(30)
    stock, _ = ask(shop, VECTORS, {"item_id": [*IDS, "nobody"]})
    expected = stock.to_dict()
    names = answer["metadata"]["feature_names"]
    read = {name: column["values"] for name, column in zip(names, answer["results"], strict=True)}
    assert read["item_id"] == expected["item_id"]
    assert read["version"] == expected["version"]
    assert bits(read["vector"]) == bits(expected["vector"])
