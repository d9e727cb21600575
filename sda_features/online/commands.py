"""Redis commands for the rows of an Arrow batch, put together from slices of its buffers.

A command in RESP is `*{arguments}`, then for each argument `${bytes}` and the bytes. What is the same
for many rows (fields, headers of values) is made once; vectors are copied once, into the command.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from sda_features.errors import FeatureStoreError
from sda_features.offline.latest import NO_TIME
from sda_features.serving import codec
from sda_features.serving.codec import ValueKind

Piece = bytes | memoryview


class UnsupportedRows(FeatureStoreError):
    """Rows of a type that only stock Feast writes."""


def argument(value: bytes) -> bytes:
    """One argument of a command, after the line end of the one before it."""
    return b"\r\n$%d\r\n%b" % (len(value), value)


def commands(name: bytes, keys: Iterable[bytes], *arguments: bytes) -> bytes:
    """The command `name key arguments...` for each key."""
    head = b"*%d\r\n$%d\r\n%b" % (2 + len(arguments), len(name), name)
    tail = b"".join(map(argument, arguments)) + b"\r\n"
    return b"".join([head + argument(key) + tail for key in keys])


def hash_commands(
    keys: Sequence[bytes],
    times: Sequence[bytes],
    columns: Sequence[tuple[bytes, pa.Array]],
    *,
    time_field: bytes,
    expire: int | None = None,
) -> bytes:
    """HSET of n rows: one hash a row, its event time first, then a field for each column.

    Args:
        keys: n Redis keys.
        times: n values of `time_field`.
        columns: field name and its n values: list<float32>, string or binary, plain or large. A null
            becomes an empty value.
        time_field: name of the field of the event time.
        expire: seconds after which Redis drops the hash: one EXPIRE after each HSET.

    Raises:
        UnsupportedRows: a column has another type, or a vector has a null among its numbers.
    """
    head = b"*%d\r\n$4\r\nHSET" % (4 + 2 * len(columns))
    after_key = argument(time_field)
    tail = b"\r\n" if expire is None else b"\r\n*3\r\n$6\r\nEXPIRE"
    after_expire = b"" if expire is None else argument(b"%d" % expire) + b"\r\n"
    framed = list(map(argument, keys))
    framed_times = {time: after_key + argument(time) for time in set(times)}
    parts: list[Sequence[Piece]] = [
        [head + key + framed_times[time] for key, time in zip(framed, times, strict=True)]
    ]
    for field, column in columns:
        parts += _values(field, column)
    parts.append([tail] * len(keys) if expire is None else [tail + key + after_expire for key in framed])
    pieces: list[Piece] = [b""] * (len(parts) * len(keys))
    for place, part in enumerate(parts):
        pieces[place :: len(parts)] = part
    return b"".join(pieces)


def encode_times(nanoseconds: np.ndarray) -> list[bytes]:
    """Protobuf Timestamps of times [n] in int64 nanoseconds since 1970, to the microsecond as Feast has them.

    Raises:
        UnsupportedRows: a time is missing.
    """
    distinct, inverse = np.unique(nanoseconds, return_inverse=True)
    if len(distinct) and distinct[0] == NO_TIME:
        raise UnsupportedRows("Expected an event timestamp in every row, got a null.")
    encoded = [
        codec.encode_timestamp(time // 1_000_000_000, time % 1_000_000_000 // 1_000 * 1_000)
        for time in distinct.tolist()
    ]
    return [encoded[place] for place in inverse.tolist()]


def _values(field: bytes, column: pa.Array) -> tuple[list[bytes], list[Piece]]:
    """For each row of a column, what comes before its payload (field, length, header), and the payload."""
    kind, starts, ends, data = _payloads(column)
    lengths = ends - starts
    before: dict[int, bytes] = {-1: argument(field) + b"\r\n$0\r\n"}
    for length in np.unique(lengths).tolist():
        header = codec.value_header(kind, length)
        before[length] = argument(field) + b"\r\n$%d\r\n%b" % (len(header) + length, header)
    payloads: list[Piece] = [
        data[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
    if column.null_count:
        valid = np.asarray(column.is_valid())
        lengths = np.where(valid, lengths, -1)
        payloads = [payload if there else b"" for payload, there in zip(payloads, valid, strict=True)]
    return [before[length] for length in lengths.tolist()], payloads


def value_kind(data_type: pa.DataType) -> ValueKind | None:
    """What values of an Arrow type are in Feast; None for a type that is not written here."""
    types = pa.types
    if types.is_list(data_type) or types.is_large_list(data_type) or types.is_fixed_size_list(data_type):
        return "floats" if data_type.value_type == pa.float32() else None
    if types.is_string(data_type) or types.is_large_string(data_type):
        return "string"
    return "bytes" if types.is_binary(data_type) or types.is_large_binary(data_type) else None


def _payloads(column: pa.Array) -> tuple[ValueKind, np.ndarray, np.ndarray, memoryview]:
    """Kind of a column, where each row's payload starts and ends [n] in bytes, and the bytes.

    The buffers of a slice are those of the whole array; `column.offset` says where it starts.
    """
    kind = value_kind(column.type)
    rows = slice(column.offset, column.offset + len(column) + 1)
    if kind is None:
        raise UnsupportedRows(f"Expected list<float32>, string or binary, got {column.type}.")
    if kind != "floats":
        large = column.type in (pa.large_string(), pa.large_binary())
        _, offsets, data = column.buffers()
        bounds = np.frombuffer(offsets, np.int64 if large else np.int32)[rows].astype(np.int64)
    else:
        numbers = column.values
        if pa.types.is_fixed_size_list(column.type):
            bounds = np.arange(rows.start, rows.stop, dtype=np.int64) * column.type.list_size
        else:
            bounds = np.asarray(column.offsets).astype(np.int64)
        if numbers.null_count and column.flatten().null_count:  # those of null vectors do not count
            raise UnsupportedRows("Expected numbers in every place of a vector, got a null.")
        data = numbers.buffers()[1]
        bounds = 4 * (bounds + numbers.offset)
    return kind, bounds[:-1], bounds[1:], memoryview(data or b"")
