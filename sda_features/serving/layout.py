"""How stock Feast lays item vectors out in Redis, and the codec that reads it.

One hash holds all features of one entity, of every feature view of a project:

    key    u32 1 | u32 2 | u32 len | join key | u32 type | u32 len | value | project      (little-endian)
    field  murmur3_32("view:feature") as four bytes -> ValueProto;   "_ts:view" -> Timestamp

A ValueProto with a packed list of d float32 is `82 01 | varint | 0a | varint 4d | 4d bytes`, one
with a string is `12 | varint len | utf-8`, and an empty one is a null. This is Feast's
specification of the online format with entity key version 3; nothing here imports Feast.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from typing import Literal, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from sda_features.errors import FeatureMismatchError, SettingsError

IdType: TypeAlias = Literal["string", "int32", "int64"]
Matrix: TypeAlias = npt.NDArray[np.float32]
Mask: TypeAlias = npt.NDArray[np.bool_]

TEXT = "text_embedding"
IMAGE = "image_embedding"
VERSION = "adapter_version"
FEATURES = (TEXT, IMAGE, VERSION)

_STRING = 2  # Feast's ValueType
_INTEGERS = {"int32": (3, struct.Struct("<i")), "int64": (4, struct.Struct("<q"))}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def view_name(feature_set: str) -> str:
    """Name of the feature view of a feature set: `{feature_set}_item_embeddings`.

    Raises:
        SettingsError: the name is not letters, digits and underscores.
    """
    if not _NAME.fullmatch(feature_set):
        raise SettingsError(
            f"A feature set is named with letters, digits and underscores, such as 'sda'; got {feature_set!r}."
        )
    return f"{feature_set}_item_embeddings"


def parse_item_id(item_id: str | int, id_type: IdType) -> str | int:
    """`item_id` in the type that the repo's entity has.

    An id that does not print back as it came ("007" for an integer) is refused: two ids of the
    catalogue would share one row.

    Raises:
        FeatureMismatchError: the id is not a value of `id_type`.
    """
    if id_type == "string":
        return str(item_id)
    _, packer = _INTEGERS[id_type]
    try:
        number = int(item_id)
        packer.pack(number)
    except (ValueError, struct.error):
        number = None
    if number is None or str(number) != str(item_id):
        raise FeatureMismatchError(
            f"The item entity has ids of type {id_type}, and {item_id!r} is not one. "
            "Use an entity with string ids, or ids that are plain integers."
        )
    return number


def redis_keys(
    item_ids: Iterable[str | int], *, project: str, join_key: str = "item_id", id_type: IdType = "string"
) -> list[bytes]:
    """Redis keys of items, in the order of `item_ids`."""
    name = join_key.encode()
    prefix = struct.pack("<III", 1, _STRING, len(name)) + name
    suffix = project.encode()
    if id_type == "string":
        prefix += struct.pack("<I", _STRING)
        values = [str(item_id).encode() for item_id in item_ids]
        return [b"%b%b%b%b" % (prefix, len(value).to_bytes(4, "little"), value, suffix) for value in values]
    code, packer = _INTEGERS[id_type]
    prefix += struct.pack("<II", code, packer.size)
    return [prefix + packer.pack(parse_item_id(item_id, id_type)) + suffix for item_id in item_ids]


def hash_field(view: str, feature: str) -> bytes:
    """Name of the hash field that holds `feature` of `view`."""
    return murmur3_32(f"{view}:{feature}".encode()).to_bytes(4, "little")


def timestamp_field(view: str) -> bytes:
    """Name of the hash field that holds the event timestamp of `view`."""
    return f"_ts:{view}".encode()


def murmur3_32(data: bytes) -> int:
    """MurmurHash3, x86, 32 bits, seed 0 (Appleby; public domain), as an unsigned integer."""
    state = 0
    tail = len(data) & ~3
    for (word,) in struct.iter_unpack("<I", data[:tail]):
        state = _rotate(state ^ _scramble(word), 13) * 5 + 0xE6546B64 & 0xFFFFFFFF
    state ^= _scramble(int.from_bytes(data[tail:], "little")) ^ len(data)
    state = (state ^ state >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    state = (state ^ state >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return state ^ state >> 16


def encode_vector(vector: npt.ArrayLike | None) -> bytes:
    """ValueProto of a float32 vector [d], or of a null."""
    if vector is None:
        return b""
    payload = np.asarray(vector, "<f4").tobytes()
    return _vector_header(len(payload)) + payload


def vector_dim(value: bytes, name: object) -> int:
    """Dimension d of an encoded vector.

    Args:
        value: a ValueProto that is not empty.
        name: whose value it is, for the error message.

    Raises:
        FeatureMismatchError: the value is not a list of float32.
    """
    for header_size in range(5, 14):  # 3 bytes of tags and two varints
        payload = len(value) - header_size
        if payload >= 4 and payload % 4 == 0 and value[:header_size] == _vector_header(payload):
            return payload // 4
    raise FeatureMismatchError(
        f"Item {name!r}: expected a list of float32 in the online store, got {len(value)} bytes that start "
        f"{value[:6].hex(' ')}. Is the feature declared as Array(Float32)?"
    )


def decode_vectors(
    values: Sequence[bytes | None], dim: int, *, names: Sequence[object]
) -> tuple[Matrix, Mask]:
    """One matrix of many ValueProtos, without a Python float.

    Args:
        values: n ValueProtos; None (no such field) and an empty one (a null) count as not found.
        dim: the dimension d that the vectors must have.
        names: whose values they are, for error messages, [n].

    Returns:
        matrix: float32 [n, d], C-contiguous, zero where not found.
        found: bool [n].

    Raises:
        FeatureMismatchError: a value is not a list of float32, or has another dimension.
    """
    found = np.fromiter((bool(value) for value in values), np.bool_, len(values))
    matrix = np.zeros((len(values), dim), "<f4")
    present = [value for value in values if value]
    if not present:
        return matrix.astype(np.float32, copy=False), found
    header = _vector_header(4 * dim)
    size = len(header) + 4 * dim
    if any(len(value) != size for value in present):
        _refuse(values, names, dim)
    block = np.frombuffer(b"".join(present), np.uint8).reshape(-1, size)
    if (block[:, : len(header)] != np.frombuffer(header, np.uint8)).any():
        _refuse(values, names, dim)
    matrix.view(np.uint8)[found] = block[:, len(header) :]
    return matrix.astype(np.float32, copy=False), found


def encode_string(text: str | None) -> bytes:
    """ValueProto of a string, or of a null."""
    if text is None:
        return b""
    payload = text.encode()
    return b"\x12" + _varint(len(payload)) + payload


def decode_string(value: bytes | None) -> str | None:
    """The string in a ValueProto; None for a null and for no value.

    Raises:
        FeatureMismatchError: the value is not a string.
    """
    if not value:
        return None
    length, start = _read_varint(value, 1)
    if value[0] != 0x12 or length != len(value) - start:
        raise FeatureMismatchError(
            f"Expected a string in the online store, got a value that starts {value[:4]!r}."
        )
    return value[start:].decode()


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


def _vector_header(payload: int) -> bytes:
    inner = b"\x0a" + _varint(payload)
    return b"\x82\x01" + _varint(len(inner) + payload) + inner


def _refuse(values: Sequence[bytes | None], names: Sequence[object], dim: int) -> NoReturn:
    """Raise for the first value that is not a vector of dimension `dim`."""
    name, got = next(
        (name, got)
        for value, name in zip(values, names, strict=True)
        if value and (got := vector_dim(value, name)) != dim
    )
    raise FeatureMismatchError(
        f"Item {name!r} has a vector of dimension {got}, expected {dim}. Either this feature set holds vectors "
        "of two models (materialize it again), or the reader asked for the wrong dimension."
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


def _scramble(word: int) -> int:
    return _rotate(word * 0xCC9E2D51 & 0xFFFFFFFF, 15) * 0x1B873593 & 0xFFFFFFFF


def _rotate(word: int, by: int) -> int:
    return word << by & 0xFFFFFFFF | word >> 32 - by
