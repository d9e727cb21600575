"""Where stock Feast keeps item vectors in Redis: names of views, keys and fields. Values: codec.py.

One hash holds all features of one entity, of every feature view of a project:

    key    u32 1 | u32 2 | u32 len | join key | u32 type | u32 len | value | project      (little-endian)
    field  murmur3_32("view:feature") as four bytes -> ValueProto;   "_ts:view" -> Timestamp

This is Feast's specification of the online format with entity key version 3; nothing here imports
Feast. Versions of a feature set live side by side in slots: each slot is a feature view of its own,
so it has fields of its own in the same hashes (pointer.py says which slot is served).
"""

from __future__ import annotations

import math
import numbers
import operator
import re
import struct
import uuid
from collections.abc import Iterable
from typing import Literal, TypeAlias

from sda_features.errors import FeatureMismatchError, SettingsError

IdType: TypeAlias = Literal["string", "int32", "int64"]

TEXT = "text_embedding"
IMAGE = "image_embedding"
VERSION = "adapter_version"
FEATURES = (TEXT, IMAGE, VERSION)

ID_TYPES: dict[str, IdType] = {"STRING": "string", "INT32": "int32", "INT64": "int64"}  # by Feast's ValueType

_STRING = 2  # Feast's ValueType
_INTEGERS = {"int32": (3, struct.Struct("<i")), "int64": (4, struct.Struct("<q"))}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def view_name(feature_set: str, slot: int = 1) -> str:
    """Name of the feature view that is a slot of a feature set.

    `{feature_set}_item_embeddings` is slot 1, `{feature_set}_item_embeddings_2` slot 2, and so on.

    Raises:
        SettingsError: the name is not letters, digits and underscores.
    """
    if not _NAME.fullmatch(feature_set):
        raise SettingsError(
            f"A feature set is named with letters, digits and underscores, such as 'sda'; got {feature_set!r}."
        )
    return f"{feature_set}_item_embeddings" + (f"_{slot}" if slot > 1 else "")


def parse_item_id(item_id: str | int, id_type: IdType) -> str | int:
    """`item_id` in the type that the repo's entity has.

    An id that does not print back as it came ("007" for an integer) is refused: two ids of the
    catalogue would share one row.

    Raises:
        FeatureMismatchError: the id is not a value of `id_type`.
    """
    item_id = id_text(item_id)
    if id_type == "string":
        return item_id
    _, packer = _INTEGERS[id_type]
    try:
        number = int(item_id)
        packer.pack(number)
    except (ValueError, struct.error):
        number = None
    if number is None or str(number) != item_id:
        raise FeatureMismatchError(
            f"The item entity has ids of type {id_type}, and {item_id!r} is not one. "
            "Use an entity with string ids, or ids that are plain integers."
        )
    return number


def id_text(item_id: str | int | float) -> str:
    """An id as catalogue and log write it: text as it is, a number that is whole as an integer.

    Raises:
        FeatureMismatchError: neither; or a float from 2^53 on, which stands for several numbers.
    """
    if isinstance(item_id, str | uuid.UUID):
        return str(item_id)
    try:
        number = operator.index(item_id)  # type: ignore[arg-type]
    except TypeError:
        whole = isinstance(item_id, numbers.Real) and math.isfinite(item_id) and int(item_id) == item_id
        if not whole or abs(item_id) >= 2**53:
            raise FeatureMismatchError(
                f"Expected ids as text or integers, got {item_id!r} ({type(item_id).__name__})."
            ) from None
        number = int(item_id)
    if isinstance(item_id, bool):
        raise FeatureMismatchError(f"Expected ids as text or integers, got {item_id!r}.")
    return str(number)


def redis_keys(
    item_ids: Iterable[str | int], *, project: str, join_key: str = "item_id", id_type: IdType = "string"
) -> list[bytes]:
    """Redis keys of items, in the order of `item_ids`."""
    prefix = key_prefix(join_key, id_type)
    suffix = project.encode()
    if id_type == "string":
        values = [(item_id if type(item_id) is str else id_text(item_id)).encode() for item_id in item_ids]
        heads = {size: prefix + size.to_bytes(4, "little") for size in set(map(len, values))}
        return [heads[len(value)] + value + suffix for value in values]
    _, packer = _INTEGERS[id_type]
    prefix += struct.pack("<I", packer.size)
    return [prefix + packer.pack(parse_item_id(item_id, id_type)) + suffix for item_id in item_ids]


def key_prefix(join_key: str, id_type: IdType) -> bytes:
    """The beginning of a key, up to the length of its value."""
    name = join_key.encode()
    code = _STRING if id_type == "string" else _INTEGERS[id_type][0]
    return struct.pack("<III", 1, _STRING, len(name)) + name + struct.pack("<I", code)


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


def _scramble(word: int) -> int:
    return _rotate(word * 0xCC9E2D51 & 0xFFFFFFFF, 15) * 0x1B873593 & 0xFFFFFFFF


def _rotate(word: int, by: int) -> int:
    return word << by & 0xFFFFFFFF | word >> 32 - by
