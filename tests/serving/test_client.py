"""EmbeddingClient against a real server that holds Feast's layout."""

import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from sda_features.errors import FeatureMismatchError, FeatureStoreError, OnlineStoreError, SettingsError
from sda_features.serving import EmbeddingClient, codec, layout
from sda_features.serving.embedded import embedded_redis
from tests.serving.stored import put

DIM = 3
SECRET = "s3cret"


def test_order_repeats_nulls_and_unknown_ids(server, project, client):
    put(server, project, "a", [1, 2, 3], [4, 5, 6])
    put(server, project, "b", [7, 8, 9], None)
    put(server, project, "ü/漢:1", None, [0.5, -0.0, 1e-40])
    found = client.get(["ü/漢:1", "b", "?", "a", "b"])
    assert found.item_ids == ("ü/漢:1", "b", "?", "a", "b")
    assert found.text.tolist() == [[0] * 3, [7, 8, 9], [0] * 3, [1, 2, 3], [7, 8, 9]]
    assert found.text_found.tolist() == [False, True, False, True, True]
    assert found.image[0].tobytes() == np.array([0.5, -0.0, 1e-40], np.float32).tobytes()
    assert found.image_found.tolist() == [True, False, False, True, False]
    assert found.versions == ("v1", "v1", None, "v1", "v1")
    assert found.text.flags.c_contiguous
    assert (len(found), found.dim) == (5, 3)


@pytest.mark.parametrize(("dim", "width"), [(None, 0), (DIM, DIM)])
def test_nothing_asked_and_nothing_found(url, project, dim, width):
    with EmbeddingClient(url, project=project, dim=dim) as client:
        assert client.get([]).text.shape == (0, width)
        missing = client.get(["a", "b"])
    assert missing.text.shape == missing.image.shape == (2, width)
    assert not missing.text_found.any()
    assert missing.versions == (None, None)


@settings(max_examples=25, deadline=None)
@given(
    stored=st.dictionaries(st.text(max_size=8), st.tuples(st.booleans(), st.booleans()), max_size=8),
    data=st.data(),
)
def test_what_is_put_is_got(server, url, new_project, stored, data):
    project = new_project()
    rng = np.random.default_rng(0)
    vectors = {item_id: rng.normal(size=(2, DIM)).astype(np.float32) for item_id in stored}
    for item_id, (has_text, has_image) in stored.items():
        text, image = vectors[item_id]
        put(server, project, item_id, text if has_text else None, image if has_image else None)
    ids = data.draw(st.lists(st.sampled_from([*stored, "absent"])))
    with EmbeddingClient(url, project=project, dim=DIM) as client:
        found = client.get(ids)
    for row, item_id in enumerate(ids):
        has_text, has_image = stored.get(item_id, (False, False))
        text, image = vectors.get(item_id, np.zeros((2, DIM), np.float32))
        assert (found.text_found[row], found.image_found[row]) == (has_text, has_image)
        assert found.text[row].tolist() == (text * has_text).tolist()
        assert found.image[row].tolist() == (image * has_image).tolist()


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ({"dim": DIM}, 0),
        ({"feature_set": "vanilla"}, 1),
        ({"view": "vanilla_item_embeddings"}, 1),
        ({"id_type": "int64"}, 2),
        ({"join_key": "sku"}, 3),
    ],
    ids=str,
)
def test_projects_views_and_keys_are_apart(server, url, project, options, number):
    put(server, project, "1", [1, 1, 1], view="vanilla_item_embeddings")
    put(server, project, "1", [2, 2, 2], id_type="int64")
    put(server, project, "1", [3, 3, 3], join_key="sku")
    put(server, f"x{project}", "1", [4, 4, 4])
    with EmbeddingClient(url, project=project, **options) as client:
        assert client.get(["1"]).text.tolist() == [[number] * 3]


@pytest.mark.parametrize(
    ("options", "ids", "message"),
    [
        ({}, ["a", "b"], "'b' has a vector of dimension 2, expected 3"),
        ({"dim": 4}, ["a"], "'a' has a vector of dimension 3, expected 4"),
        ({"version": "v2"}, ["?", "a"], "adapter version 'v1', expected 'v2'"),
    ],
)
def test_the_dimension_and_the_version_asked_for(server, url, project, options, ids, message):
    put(server, project, "a", [1, 2, 3], [1, 2, 3])
    put(server, project, "b", [1, 2, 3], [1, 2])
    with pytest.raises(FeatureMismatchError, match=message):
        EmbeddingClient(url, project=project, **options).get(ids)


def test_a_value_that_is_no_vector(server, project, client):
    (key,) = layout.redis_keys(["a"], project=project)
    server.hset(key, layout.hash_field("sda_item_embeddings", layout.TEXT), codec.encode_string("text"))
    with pytest.raises(FeatureMismatchError, match="Item 'a': expected a vector"):
        client.get(["?", "a"])


def test_a_key_that_is_no_hash(server, project, client):
    server.set(layout.redis_keys(["a"], project=project)[0], "text")
    with pytest.raises(OnlineStoreError, match="something else than Feast's hashes"):
        client.get(["a"])


def test_a_client_of_your_own(server, redis_server, project):
    put(server, project, "a", [1, 2, 3])
    client = EmbeddingClient(server, project=project)
    assert client.address == "{}:{}".format(*redis_server)
    assert client.get(["a"]).text.tolist() == [[1, 2, 3]]
    decoding = redis.Redis(*redis_server, decode_responses=True)
    with pytest.raises(SettingsError, match="decode_responses=False"):
        EmbeddingClient(decoding, project=project)


def test_threads_share_a_client(server, project, client):
    ids = [str(number) for number in range(50)]
    for item_id in ids:
        put(server, project, item_id, [float(item_id)] * DIM)

    def read(shift):
        order = ids[shift:] + ids[:shift]
        for _ in range(10):
            assert client.get(order).text[:, 0].tolist() == [float(item_id) for item_id in order]

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(read, range(4)))


def test_a_server_that_is_not_there():
    client = EmbeddingClient(f"127.0.0.1:1,password={SECRET}", project="shop")
    with pytest.raises(OnlineStoreError, match=r"127\.0\.0\.1:1, but it cannot be reached") as raised:
        client.get(["a"])
    with pytest.raises(OnlineStoreError, match="cannot be reached"):
        client.ping()
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_server_that_does_not_answer():
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        with pytest.raises(OnlineStoreError, match=f"{address}, but it did not answer in time"):
            EmbeddingClient(address, project="shop", timeout=0.05).get(["a"])


def test_passwords():
    with embedded_redis() as (host, port), redis.Redis(host, port) as admin:
        put(admin, "shop", "a", [1, 2, 3])
        admin.config_set("requirepass", SECRET)
        for right in (f"{host}:{port},password={SECRET}", f"redis://:{SECRET}@{host}:{port}"):
            with EmbeddingClient(right, project="shop") as client:
                assert client.get(["a"]).text_found.all()
        for wrong in (f"{host}:{port},password={SECRET}x", f"{host}:{port}"):
            with pytest.raises(OnlineStoreError, match="password") as raised:
                EmbeddingClient(wrong, project="shop").get(["a"])
            assert SECRET not in str(raised.value)


def test_a_repo(server, redis_server, project, tmp_path):
    put(server, project, "a", [1, 2, 3])
    store = "{{type: redis, connection_string: '{}:{},db=0'}}".format(*redis_server)
    (tmp_path / "feature_store.yaml").write_text(f"project: {project}\nonline_store: {store}\n")
    with EmbeddingClient.from_repo(tmp_path, "sda", dim=DIM) as client:
        assert client.get(["a"]).text.tolist() == [[1, 2, 3]]
    with pytest.raises(FeatureStoreError, match=r"there is no .*feature_store\.yaml"):
        EmbeddingClient.from_repo(tmp_path / "absent")
