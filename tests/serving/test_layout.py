"""The codec against stock Feast's serialisers: byte for byte."""

import struct
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sda_features.errors import FeatureMismatchError, SettingsError
from sda_features.serving import layout
from tests.reference import redis_layout as reference

texts = st.text(min_size=1, max_size=40)
float32s = st.floats(width=32, allow_nan=False)
integers = {"int32": st.integers(-(2**31), 2**31 - 1), "int64": st.integers(-(2**63), 2**63 - 1)}


@given(project=texts, join_key=texts, item_id=st.text(max_size=40))
def test_string_keys_are_feasts(project, join_key, item_id):
    (key,) = layout.redis_keys([item_id], project=project, join_key=join_key)
    assert key == reference.key(project, join_key, item_id, "string")


@pytest.mark.parametrize("id_type", ["int32", "int64"])
@given(data=st.data())
def test_integer_keys_are_feasts(id_type, data):
    item_id = data.draw(integers[id_type])
    keys = layout.redis_keys([item_id, str(item_id)], project="shop", id_type=id_type)
    assert keys == [reference.key("shop", "item_id", item_id, id_type)] * 2


@pytest.mark.parametrize("bad", ["007", "+7", " 7", "7.0", "seven", "", str(2**31), 2**31])
def test_an_id_that_is_no_integer_is_refused(bad):
    with pytest.raises(FeatureMismatchError, match="ids of type int32"):
        layout.redis_keys([bad], project="shop", id_type="int32")


@given(view=texts, feature=texts)
def test_field_names_are_feasts(view, feature):
    assert layout.hash_field(view, feature) == reference.field(view, feature)


@pytest.mark.parametrize(
    ("data", "expected"), [(b"", 0), (b"a", 0x3C2569B2), (b"abcd", 0x43ED676A), (b"\xff" * 5, None)]
)
def test_murmur3_known_values(data, expected):
    mmh3 = pytest.importorskip("mmh3")
    assert layout.murmur3_32(data) == mmh3.hash(data, signed=False)
    if expected is not None:
        assert layout.murmur3_32(data) == expected


@given(st.lists(float32s, min_size=1, max_size=40))
def test_vectors_are_feasts(values):
    assert layout.encode_vector(values) == reference.vector(values)
    decoded, found = layout.decode_vectors([reference.vector(values)], len(values), names=["a"])
    assert found.tolist() == [True]
    assert decoded.tobytes() == np.array(values, "<f4").tobytes()  # -0.0 and denormals too


# Around each length at which one of the two varints of the header grows.
@pytest.mark.parametrize("dim", [1, 31, 32, 33, 4094, 4095, 4096, 4097, 524_286, 524_287, 524_288])
def test_vectors_of_every_header_size(dim):
    vector = np.random.default_rng(dim).normal(size=dim).astype(np.float32)
    encoded = reference.vector(vector)
    assert layout.encode_vector(vector) == encoded
    assert layout.vector_dim(encoded, "a") == dim
    decoded, _ = layout.decode_vectors([encoded], dim, names=["a"])
    assert decoded.tobytes() == vector.tobytes()


@given(st.data())
def test_a_matrix_is_its_rows(data):
    dim = data.draw(st.integers(1, 5))
    rows = data.draw(st.lists(st.none() | st.lists(float32s, min_size=dim, max_size=dim)))
    absent = data.draw(st.sampled_from([None, b""]))
    values = [absent if row is None else reference.vector(row) for row in rows]
    matrix, found = layout.decode_vectors(values, dim, names=range(len(rows)))
    assert found.tolist() == [row is not None for row in rows]
    assert matrix.shape == (len(rows), dim)
    assert matrix.dtype == np.float32
    assert matrix.flags.c_contiguous
    assert matrix.tolist() == [row if row is not None else [0.0] * dim for row in rows]


@given(st.none() | st.text(max_size=300))
def test_strings_are_feasts(text):
    encoded = layout.encode_string(text)
    assert encoded == reference.string(text)
    assert layout.decode_string(encoded) == text


@given(st.datetimes(datetime(1960, 1, 1), datetime(2200, 1, 1)))
def test_timestamps_are_feasts(time):
    time = time.replace(tzinfo=UTC)
    microseconds = (time - datetime(1970, 1, 1, tzinfo=UTC)) // (datetime.resolution)
    assert layout.decode_timestamp(reference.timestamp(time)) == 1000 * microseconds


@pytest.mark.parametrize(
    "value",
    [
        layout.encode_string("a vector?"),
        struct.pack("<4f", 1, 2, 3, 4),
        reference.vector([1.0, 2.0])[:-1],
        reference.vector([1.0, 2.0]) + b"\0",
        b"\x82\x01\x00",  # a list of no numbers
    ],
)
@pytest.mark.parametrize("before", [[], [reference.vector([1.0, 2.0])]])
def test_what_is_no_vector_is_refused(value, before):
    names = [*(["good"] * len(before)), "bad"]
    with pytest.raises(FeatureMismatchError, match="'bad'.*expected a list of float32"):
        layout.decode_vectors([*before, value], 2, names=names)


def test_another_list_of_the_same_size_is_refused():
    from feast.protos.feast.types.Value_pb2 import BoolList, Value

    booleans = Value(bool_list_val=BoolList(val=[True] * 32)).SerializeToString()
    assert len(booleans) == len(reference.vector([0.0] * 8))
    with pytest.raises(FeatureMismatchError, match="expected a list of float32"):
        layout.decode_vectors([booleans], 8, names=["a"])


def test_another_dimension_is_refused():
    with pytest.raises(FeatureMismatchError, match="Item 'b' has a vector of dimension 3, expected 2"):
        layout.decode_vectors(
            [reference.vector([1, 2]), None, reference.vector([1, 2, 3])], 2, names=["a", "-", "b"]
        )


@pytest.mark.parametrize("name", ["", "a-b", "a:b", "1a", "sda "])
def test_a_feature_set_has_a_plain_name(name):
    with pytest.raises(SettingsError, match="letters, digits and underscores"):
        layout.view_name(name)
