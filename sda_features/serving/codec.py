"""The values of Feast's Redis hashes as bytes: vectors, strings, timestamps, to and from numpy.

A value is a serialised ValueProto; an empty one is a null. Here d is the dimension of a vector:

    float32   82 01 | varint | 0a | varint 4d | 4d bytes          Array(Float32), as stock Feast writes it
    float16   0a | varint | "SV" 01 00 | u32 d | 2d bytes         Bytes
    int8      0a | varint | "SV" 02 00 | u32 d | f32 scale | d bytes    Bytes; a number is scale times its byte
    string    12 | varint len | utf-8

All numbers are little-endian. A Bytes feature holds what follows its varint: `pack_vectors` makes it
for the offline store. Nothing here imports Feast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NoReturn, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from sda_features.errors import FeatureMismatchError

Matrix: TypeAlias = npt.NDArray[np.float32]
Mask: TypeAlias = npt.NDArray[np.bool_]
StoreDtype: TypeAlias = Literal["float32", "float16", "int8"]
ValueKind: TypeAlias = Literal["floats", "bytes", "string"]

STORE_DTYPES: tuple[StoreDtype, ...] = get_args(StoreDtype)
_BYTES_TAG, _STRING_TAG, _FLOAT_LIST_TAG = 0x0A, 0x12, b"\x82\x01"
_MARKS: dict[StoreDtype, bytes] = {"float16": b"SV\x01\x00", "int8": b"SV\x02\x00"}


def encode_vectors(matrix: Matrix, found: Mask | None = None, dtype: StoreDtype = "float32") -> list[bytes]:
    """ValueProtos of the rows of a matrix.

    Args:
        matrix: float32 [n, d].
        found: bool [n]; False makes a null. None: all are there.
        dtype: how numbers are stored.
    """
    prefix = _prefix(dtype, matrix.shape[1])
    rows = _rows(matrix, dtype)
    if found is None:
        return [prefix + row for row in rows]
    return [prefix + row if there else b"" for row, there in zip(rows, found.tolist(), strict=True)]


def pack_vectors(matrix: Matrix, dtype: StoreDtype) -> list[bytes]:
    """The rows of a matrix [n, d] as values of a Bytes feature (float16, int8)."""
    header = _header(dtype, matrix.shape[1])
    return [header + row for row in _rows(matrix, dtype)]


def decode_vectors(
    values: Sequence[bytes | None], dim: int, *, names: Sequence[object]
) -> tuple[Matrix, Mask]:
    """One matrix of many ValueProtos, without a Python float.

    Args:
        values: n ValueProtos of one store dtype; None (no such field) and an empty one (a null)
            count as not found.
        dim: the dimension d that the vectors must have.
        names: whose values they are, for error messages, [n].

    Returns:
        matrix: float32 [n, d], C-contiguous, zero where not found.
        found: bool [n].

    Raises:
        FeatureMismatchError: a value is not a vector, or differs in dimension or store dtype.
    """
    found = np.fromiter(map(bool, values), np.bool_, len(values))
    matrix = np.zeros((len(values), dim), np.float32)
    present = [value for value in values if value]
    if present:
        numbers = None
        if len(set(map(len, present))) == 1:
            numbers = _numbers(np.frombuffer(b"".join(present), np.uint8).reshape(len(present), -1), dim)
        if numbers is None:
            _refuse(present, [name for name, there in zip(names, found, strict=True) if there], dim)
        matrix[found if len(present) < len(values) else ...] = numbers  # a mask of all would cost a copy
    return matrix, found


def decode_block(block: npt.NDArray[np.uint8], dim: int) -> Matrix | None:
    """One matrix of many ValueProtos of one length.

    Args:
        block: uint8 [n, bytes of a value], n at least 1.
        dim: the dimension d that the vectors must have.

    Returns:
        float32 [n, d], C-contiguous; None if the values are not all vectors of dimension d and one
        store dtype.
    """
    numbers = _numbers(block, dim)
    return None if numbers is None else numbers.astype(np.float32)


def unpack_vectors(payloads: Sequence[bytes], dim: int | None = None) -> Matrix:
    """The matrix [n, d] of values that `pack_vectors` made.

    Args:
        payloads: n values of a Bytes feature.
        dim: the dimension d that they must have; None: that of the first, 0 without one.

    Raises:
        FeatureMismatchError: a payload is not such a value, or has another dimension.
    """
    wrapped = [value_header("bytes", len(payload)) + payload for payload in payloads]
    if dim is None:
        dim = vector_dim(wrapped[0], 0) if wrapped else 0
    return decode_vectors(wrapped, dim, names=range(len(wrapped)))[0]


def vector_dim(value: bytes, name: object) -> int:
    """Dimension d of an encoded vector.

    Args:
        value: a ValueProto that is not empty.
        name: whose value it is, for the error message.

    Raises:
        FeatureMismatchError: the value is not a vector.
    """
    return describe_vector(value, name)[1]


def describe_vector(value: bytes, name: object) -> tuple[StoreDtype, int]:
    """Store dtype and dimension of an encoded vector; arguments and errors as for `vector_dim`."""
    if value[:1] == bytes([_BYTES_TAG]):
        _, start = _read_varint(value, 1)
        dtype = next((known for known, mark in _MARKS.items() if value.startswith(mark, start)), None)
        dim = int.from_bytes(value[start + 4 : start + 8], "little")
        if dtype and dim and len(value) == len(_prefix(dtype, dim)) + _body_size(dtype, dim):
            return dtype, dim
    for header_size in range(5, 14):  # 3 bytes of tags and two varints
        payload = len(value) - header_size
        if payload >= 4 and payload % 4 == 0 and value[:header_size] == _prefix("float32", payload // 4):
            return "float32", payload // 4
    raise FeatureMismatchError(
        f"Item {name!r}: expected a vector (a list of float32, or packed bytes) in the online store, got "
        f"{len(value)} bytes that start {value[:6].hex(' ')}. Is the feature declared as Array(Float32) or Bytes?"
    )


def encode_string(text: str | None) -> bytes:
    """ValueProto of a string, or of a null."""
    if text is None:
        return b""
    payload = text.encode()
    return value_header("string", len(payload)) + payload


def value_header(kind: ValueKind, size: int) -> bytes:
    """What comes before the payload of a ValueProto.

    Args:
        kind: `floats` is a list of float32.
        size: bytes of the payload, 4d for d floats.
    """
    if kind != "floats":
        return bytes([_BYTES_TAG if kind == "bytes" else _STRING_TAG]) + _varint(size)
    inner = b"\x0a" + _varint(size) if size else b""  # protobuf leaves an empty packed list out
    return _FLOAT_LIST_TAG + _varint(len(inner) + size) + inner


def decode_string(value: bytes | None) -> str | None:
    """The string in a ValueProto; None for a null and for no value.

    Raises:
        FeatureMismatchError: the value is not a string.
    """
    if not value:
        return None
    length, start = _read_varint(value, 1)
    if value[0] != _STRING_TAG or length != len(value) - start:
        raise FeatureMismatchError(
            f"Expected a string in the online store, got a value that starts {value[:4]!r}."
        )
    return value[start:].decode()


def encode_timestamp(seconds: int, nanoseconds: int = 0) -> bytes:
    """Protobuf Timestamp of an instant; `nanoseconds` are those past the second, 0 to 999,999,999."""
    unsigned = seconds & 0xFFFF_FFFF_FFFF_FFFF
    encoded = b"\x08" + _varint(unsigned) if seconds else b""
    return encoded + (b"\x10" + _varint(nanoseconds) if nanoseconds else b"")


def decode_timestamp(value: bytes | None) -> int | None:
    """Nanoseconds since 1970 in a protobuf Timestamp; None for no value."""
    if value is None:
        return None
    fields = {1: 0, 2: 0}
    position = 0
    while position < len(value):
        tag, position = _read_varint(value, position)
        fields[tag >> 3], position = _read_varint(value, position)
    seconds = fields[1] - (1 << 64 if fields[1] >> 63 else 0)
    return seconds * 1_000_000_000 + fields[2]


def _prefix(dtype: StoreDtype, dim: int) -> bytes:
    """What comes before the numbers of a vector, the same for all vectors of one dtype and dimension."""
    body = _body_size(dtype, dim)
    if dtype == "float32":
        return value_header("floats", body)
    return value_header("bytes", 8 + body) + _header(dtype, dim)


def _header(dtype: StoreDtype, dim: int) -> bytes:
    return _MARKS[dtype] + dim.to_bytes(4, "little")


def _body_size(dtype: StoreDtype, dim: int) -> int:
    return {"float32": 4 * dim, "float16": 2 * dim, "int8": 4 + dim}[dtype]


def _rows(matrix: Matrix, dtype: StoreDtype) -> list[bytes]:
    """The bodies of the rows of a matrix."""
    if dtype == "int8":
        largest = np.abs(matrix).max(axis=1, initial=0.0).astype("<f4")
        scale = largest / np.float32(127)
        scale[scale == 0] = 1  # zeros, and numbers too small to be told from them
        numbers = np.rint(np.clip(matrix / scale[:, None], -127, 127)).astype(np.int8)
        body = np.concatenate([scale.view(np.uint8).reshape(-1, 4), numbers.view(np.uint8)], axis=1)
    else:
        body = np.ascontiguousarray(matrix, "<f4" if dtype == "float32" else "<f2").view(np.uint8)
    size = body.shape[1]
    data = body.tobytes()
    return [data[start : start + size] for start in range(0, len(matrix) * size, size)]


def _numbers(block: npt.NDArray[np.uint8], dim: int) -> npt.NDArray[np.floating] | None:
    """What `decode_block` returns before it is made float32, without a copy where that is possible."""
    for dtype in STORE_DTYPES:
        prefix = np.frombuffer(_prefix(dtype, dim), np.uint8)
        if block.shape[1] != len(prefix) + _body_size(dtype, dim):
            continue
        if (block[:, : len(prefix)] == prefix).all():
            bodies = block[:, len(prefix) :]
            if dtype == "int8":
                scale: Matrix = bodies[:, :4].view("<f4")
                return scale * bodies[:, 4:].view(np.int8)
            return bodies.view("<f4" if dtype == "float32" else "<f2")
    return None


def _refuse(values: Sequence[bytes], names: Sequence[object], dim: int) -> NoReturn:
    """Raise for the first value that is not a vector of this dimension and of the first one's dtype."""
    dtype, _ = describe_vector(values[0], names[0])
    described = ((name, *describe_vector(value, name)) for value, name in zip(values, names, strict=True))
    name, got_dtype, got = next(vector for vector in described if vector[1:] != (dtype, dim))
    if got != dim:
        raise FeatureMismatchError(
            f"Item {name!r} has a vector of dimension {got}, expected {dim}. Either this feature set holds vectors "
            "of two models (materialize it again), or the reader asked for the wrong dimension."
        )
    raise FeatureMismatchError(
        f"Item {name!r} has a vector stored as {got_dtype}, others as {dtype}. Materialize the feature set again."
    )


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    for byte in data[position:]:
        position += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return number, position
