"""Values against stock Feast's serialisers: byte for byte; packed vectors against plain numpy."""

import struct
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sda_features.errors import FeatureMismatchError
from sda_features.serving import codec
from tests.reference import redis_layout as reference

float32s = st.floats(width=32, allow_nan=False)


@given(st.lists(float32s, min_size=1, max_size=40))
def test_vectors_are_feasts(values):
    assert codec.encode_vectors(np.array([values], np.float32)) == [reference.vector(values)]
    decoded, found = codec.decode_vectors([reference.vector(values)], len(values), names=["a"])
    assert found.tolist() == [True]
    assert decoded.tobytes() == np.array(values, "<f4").tobytes()  # -0.0 and denormals too


# Around each length at which one of the two varints of the header grows.
@pytest.mark.parametrize("dim", [1, 31, 32, 33, 4094, 4095, 4096, 4097, 524_286, 524_287, 524_288])
def test_vectors_of_every_header_size(dim):
    vector = np.random.default_rng(dim).normal(size=dim).astype(np.float32)
    encoded = reference.vector(vector)
    assert codec.encode_vectors(vector[None]) == [encoded]
    assert codec.vector_dim(encoded, "a") == dim
    decoded, _ = codec.decode_vectors([encoded], dim, names=["a"])
    assert decoded.tobytes() == vector.tobytes()


@given(st.data())
def test_a_matrix_is_its_rows(data):
    dim = data.draw(st.integers(1, 5))
    rows = data.draw(st.lists(st.none() | st.lists(float32s, min_size=dim, max_size=dim)))
    absent = data.draw(st.sampled_from([None, b""]))
    values = [absent if row is None else reference.vector(row) for row in rows]
    matrix, found = codec.decode_vectors(values, dim, names=range(len(rows)))
    assert found.tolist() == [row is not None for row in rows]
    assert matrix.shape == (len(rows), dim)
    assert matrix.dtype == np.float32
    assert matrix.flags.c_contiguous
    assert matrix.tolist() == [row if row is not None else [0.0] * dim for row in rows]


@given(st.none() | st.text(max_size=300))
def test_strings_are_feasts(text):
    encoded = codec.encode_string(text)
    assert encoded == reference.string(text)
    assert codec.decode_string(encoded) == text


@given(st.datetimes(datetime(1960, 1, 1), datetime(2200, 1, 1)))
def test_timestamps_are_feasts(time):
    time = time.replace(tzinfo=UTC)
    microseconds = (time - datetime(1970, 1, 1, tzinfo=UTC)) // (datetime.resolution)
    assert codec.decode_timestamp(reference.timestamp(time)) == 1000 * microseconds
    seconds, rest = divmod(microseconds, 1_000_000)
    assert codec.encode_timestamp(seconds, 1000 * rest) == reference.timestamp(time)


@pytest.mark.parametrize(
    "value",
    [
        codec.encode_string("a vector?"),
        struct.pack("<4f", 1, 2, 3, 4),
        reference.vector([1.0, 2.0])[:-1],
        reference.vector([1.0, 2.0]) + b"\0",
        b"\x82\x01\x00",  # a list of no numbers
    ],
)
@pytest.mark.parametrize("before", [[], [reference.vector([1.0, 2.0])]])
def test_what_is_no_vector_is_refused(value, before):
    names = [*(["good"] * len(before)), "bad"]
    with pytest.raises(FeatureMismatchError, match="'bad'.*expected a vector"):
        codec.decode_vectors([*before, value], 2, names=names)


def test_another_list_of_the_same_size_is_refused():
    from feast.protos.feast.types.Value_pb2 import BoolList, Value

    booleans = Value(bool_list_val=BoolList(val=[True] * 32)).SerializeToString()
    assert len(booleans) == len(reference.vector([0.0] * 8))
    with pytest.raises(FeatureMismatchError, match="expected a vector"):
        codec.decode_vectors([booleans], 8, names=["a"])


def test_another_dimension_is_refused():
    values = [reference.vector([1, 2]), None, reference.vector([1, 2, 3])]
    with pytest.raises(FeatureMismatchError, match="Item 'b' has a vector of dimension 3, expected 2"):
        codec.decode_vectors(values, 2, names=["a", "-", "b"])


def test_another_store_dtype_is_refused():
    matrix = np.ones((1, 4), np.float32)
    values = [*codec.encode_vectors(matrix), *codec.encode_vectors(matrix, dtype="float16")]
    with pytest.raises(FeatureMismatchError, match="'b' has a vector stored as float16, others as float32"):
        codec.decode_vectors(values, 4, names=["a", "b"])


def matrices(largest: float):
    shapes = st.tuples(st.integers(0, 4), st.integers(1, 40))
    return arrays(np.float32, shapes, elements=st.floats(-largest, largest, width=32))


@given(matrices(65504), st.data())
def test_float16_is_numpys(matrix, data):
    found = data.draw(arrays(bool, len(matrix)))
    values = codec.encode_vectors(matrix, found, "float16")
    for row, there, value in zip(matrix, found, values, strict=True):
        header = b"SV\x01\x00" + len(row).to_bytes(4, "little")
        payload = header + row.astype("<f2").tobytes()
        assert value == (reference.bytes_value(payload) if there else b"")
    decoded, mask = codec.decode_vectors(values, matrix.shape[1], names=range(len(values)))
    assert mask.tolist() == found.tolist()
    np.testing.assert_array_equal(decoded[found], matrix[found].astype(np.float16).astype(np.float32))


@given(matrices(2.0**100))
@example(np.array([[1e-45]], np.float32))
@example(np.array([[1.9e-43, -1.9e-43]], np.float32))
def test_int8_is_within_half_a_step(matrix):
    payloads = codec.pack_vectors(matrix, "int8")
    values = codec.encode_vectors(matrix, dtype="int8")
    assert values == [reference.bytes_value(payload) for payload in payloads]
    decoded = codec.unpack_vectors(payloads, matrix.shape[1])
    step = np.abs(matrix).max(axis=1, keepdims=True, initial=0) / 127
    assert (np.abs(decoded.astype(float) - matrix) <= step * 0.5001 + 1e-38).all()
