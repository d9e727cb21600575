"""Cells of a table as text, ids and pictures: one rule for each type, wherever a table comes from.

A rule takes a column of a block of rows and gives its values, and the rows whose value it cannot
use. `arrow` reads what Arrow has typed, `plain` what CSV and JSON hold: text, or what `json.loads`
gives with numbers left as they are written. A type for which there is no rule raises
`UnusableColumn`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from types import NoneType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds

Faults = dict[int, str]  # row of the block -> what is wrong with its value
YEARS = range(1, 10_000)  # that a date is written with


class UnusableColumn(Exception):
    """No value of a column can be used; says why."""


class JsonFloat(str):
    """A JSON number with a point or an exponent, as it is written."""


class Rule(NamedTuple):
    """How the cells of a column are read; see the module."""

    arrow: Callable[[pa.Array], tuple[Any, Faults]]
    plain: Callable[[Sequence[Any]], tuple[Any, Faults]]


def one_line(text: str) -> str:
    """White space collapsed to single spaces."""
    return " ".join(text.split())


# ---------------------------------------------------------------------------------------------- text


def _arrow_texts(column: pa.Array) -> tuple[list[str], Faults]:
    values, faults = _strings(_plain_type(column))
    return [one_line(value or "") for value in values], faults


def _plain_texts(values: Sequence[Any]) -> tuple[list[str], Faults]:
    texts, faults = _plain_cells(values, {str, JsonFloat}, _json_text, "is nested too deeply")
    return [one_line(text or "") for text in texts], faults


def _json_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        pairs = ((_spoken(name), one_line(_json_text(part))) for name, part in value.items())
        return ", ".join(f"{name} {text}" for name, text in pairs if text)
    if isinstance(value, list):
        return ", ".join(filter(None, (one_line(_json_text(part)) for part in value)))
    return {None: "", True: "true", False: "false"}[value]


def _start(value: Any) -> str:
    """How a JSON value begins, for messages."""
    return f"a {type(value).__name__}" if isinstance(value, dict | list) else repr(_json_text(value)[:40])


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def _strings(column: pa.Array) -> tuple[list[str | None], Faults]:
    """Text of the cells of a column without views, dictionaries and extensions; white space as it is."""
    kind = column.type
    if kinds.is_null(kind):
        return [None] * len(column), {}
    if _is_bytes_or_text(kind):
        return _decoded(column)
    if kinds.is_boolean(kind) or kinds.is_integer(kind) or kinds.is_decimal(kind):
        return column.cast(pa.string()).to_pylist(), {}
    if kinds.is_floating(kind):
        return _floats(column), {}
    if kinds.is_date(kind) or kinds.is_timestamp(kind):
        return _dates(column)
    if kinds.is_time(kind):
        return [_short(text) for text in column.cast(pa.string()).to_pylist()], {}
    if kinds.is_duration(kind):
        return _each(
            _scalars(column), lambda cell: str(cell.cast(pa.duration("us")).as_py()), "is out of range"
        )
    if kinds.is_map(kind):
        return _lists(column, [_plain_type(column.keys), _plain_type(column.items)])
    if kinds.is_list(kind):
        return _lists(column, [_plain_type(column.values)])
    if kinds.is_struct(kind):
        return _structs(column)
    raise UnusableColumn("there is no rule that makes text of this type")


def _decoded(column: pa.Array) -> tuple[list[str | None], Faults]:
    try:
        return column.cast(pa.large_binary()).cast(pa.large_string()).to_pylist(), {}
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return _each(column.cast(pa.large_binary()).to_pylist(), bytes.decode, "is not UTF-8")


def _floats(column: pa.Array) -> list[str | None]:
    """The shortest decimal that reads back as the same number; 1995.0, which pandas makes of 1995, without ".0"."""
    numbers = column.to_numpy(zero_copy_only=False)
    texts = numbers.astype(str).tolist()
    usable = np.isfinite(numbers)
    whole = usable & (np.trunc(np.where(usable, numbers, 0)) == numbers)
    return [
        (text.removesuffix(".0") if is_whole else text) if there else None
        for text, there, is_whole in zip(texts, usable.tolist(), whole.tolist(), strict=True)
    ]


def _dates(column: pa.Array) -> tuple[list[str | None], Faults]:
    kind = column.type
    if kinds.is_timestamp(kind) and kind.tz is not None:
        try:
            pa.scalar(0, kind).cast(pa.string())
        except pa.ArrowInvalid:
            raise UnusableColumn(f"no time zone {kind.tz!r} is known here") from None
    faults: Faults = {}
    try:
        texts = column.cast(pa.string()).to_pylist()
    except pa.ArrowInvalid:
        texts, faults = _each(_scalars(column), lambda cell: cell.cast(pa.string()).as_py(), "is no date")
    for row, text in enumerate(texts):
        if text is None:
            continue
        year = text.partition("-")[0]
        if not year.isdecimal() or int(year) not in YEARS:
            texts[row], faults[row] = None, "is no date of the years 1 to 9999"
        else:
            texts[row] = _short(text)
    return texts, faults


def _short(text: str | None) -> str | None:
    """Without a fraction of zeros, time zone as +01:00: what Python writes."""
    if text is None or len(text) <= 8:
        return text
    time, zone = text, ""
    if text.endswith("Z"):
        time, zone = text[:-1], "+00:00"
    elif text[-5] in "+-" and text[-4:].isdecimal() and ":" in text:
        time, zone = text[:-5], f"{text[-5:-2]}:{text[-2:]}"
    start, point, fraction = time.partition(".")
    return (time if point and fraction.strip("0") else start) + zone


def _lists(column: pa.Array, parts: list[pa.Array]) -> tuple[list[str | None], Faults]:
    """Lists joined by commas; maps, which have keys and items, as `key item` pairs."""
    made = [_strings(part) for part in parts]
    texts = [[one_line(value or "") for value in values] for values, _ in made]
    members = texts[0]
    if len(texts) == 2:
        members = [f"{_spoken(key)} {item}" if item else "" for key, item in zip(*texts, strict=True)]
    offsets = np.asarray(column.offsets)
    faults = {
        int(np.searchsorted(offsets, at, "right")) - 1: why for _, found in made for at, why in found.items()
    }
    bounds = zip(column.is_valid().to_pylist(), offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    joined = [", ".join(filter(None, members[start:end])) if there else None for there, start, end in bounds]
    return joined, faults


def _structs(column: pa.Array) -> tuple[list[str | None], Faults]:
    pairs: list[list[str]] = [[] for _ in range(len(column))]
    faults: Faults = {}
    for field, part in zip(column.type, column.flatten(), strict=True):
        values, found = _strings(_plain_type(part))
        faults |= found
        for texts, value in zip(pairs, values, strict=True):
            if value and (text := one_line(value)):
                texts.append(f"{_spoken(field.name)} {text}")
    return [", ".join(texts) for texts in pairs], faults


# ----------------------------------------------------------------------------------------------- ids


def _arrow_ids(column: pa.Array) -> tuple[pa.Array, Faults]:
    """Ids as written, Arrow strings, null where missing; numbers that are whole as integers."""
    column = _plain_type(column)
    faults: Faults = {}
    kind = column.type
    if _is_bytes_or_text(kind):
        try:
            ids = column.cast(pa.large_binary()).cast(pa.string())
        except pa.ArrowInvalid:
            texts, faults = _decoded(column)
            ids = pa.array(texts, pa.string())
    elif kinds.is_integer(kind) or kinds.is_null(kind):
        ids = column.cast(pa.string())
    elif kinds.is_floating(kind):
        ids, faults = _whole_floats(column)
    elif kinds.is_decimal(kind):
        texts, faults = _each(column.cast(pa.string()).to_pylist(), _whole)
        ids = pa.array(texts, pa.string())
    else:
        raise UnusableColumn("ids are text or whole numbers")
    blank = pc.equal(pc.utf8_trim_whitespace(ids), "")
    return pc.if_else(pc.fill_null(blank, False), pa.scalar(None, pa.string()), ids), faults


def _whole_floats(column: pa.Array) -> tuple[pa.Array, Faults]:
    """Whole numbers below 2^53 (2^24, 2^11): further on, a float stands for several of them."""
    numbers = column.to_numpy(zero_copy_only=False)
    limit = 2 ** (np.finfo(numbers.dtype).nmant + 1)
    missing = np.isnan(numbers)
    finite = np.where(np.isfinite(numbers), numbers, 0.5).astype(np.float64)
    whole = np.trunc(finite) == finite
    if (large := whole & (np.abs(finite) >= limit)).any():
        raise UnusableColumn(
            f"{numbers[large][0]:.0f} and its neighbours are one number as {column.type}, so that ids are lost; "
            "write them as text or as integers"
        )
    faults = {int(row): f"{numbers[row]} is no whole number" for row in np.flatnonzero(~whole & ~missing)}
    integers = pa.array(np.where(whole, finite, 0).astype(np.int64), mask=~whole)
    return integers.cast(pa.string()), faults


def _whole(text: str) -> str:
    """A decimal number that is whole, as an integer."""
    number = Decimal(text)
    if number.adjusted() > 80:  # 1e999999 has a million digits
        raise ValueError(f"{text} is not an id")
    if number != number.to_integral_value():
        raise ValueError(f"{text} is no whole number")
    return str(int(number))


def _plain_ids(values: Sequence[Any]) -> tuple[pa.Array, Faults]:
    ids, faults = _plain_cells(values, {str}, _plain_id)
    return pa.array([value if value and not value.isspace() else None for value in ids], pa.string()), faults


def _plain_id(value: Any) -> str:
    if isinstance(value, JsonFloat):
        return _whole(value)
    if isinstance(value, str):
        return value
    raise ValueError(f"{_start(value)} is neither text nor a number")


# ------------------------------------------------------------------------------------------ pictures


def _arrow_pictures(column: pa.Array) -> tuple[tuple[pa.Array, pa.Array], Faults]:
    """Pictures as bytes (Arrow large_binary), or as paths and URLs (strings); null where there is none."""
    column = _plain_type(column)
    kind = column.type
    nothing = pa.nulls(len(column), pa.large_binary()), pa.nulls(len(column), pa.string())
    if kinds.is_null(kind):
        return nothing, {}
    if kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_fixed_size_binary(kind):
        return (column.cast(pa.large_binary()), nothing[1]), {}
    if kinds.is_string(kind) or kinds.is_large_string(kind):
        paths, faults = _decoded(column)
        return (nothing[0], pa.array(paths, pa.string())), faults
    if kinds.is_struct(kind) and {field.name for field in kind} & {"bytes", "path"}:
        fields = dict(zip([field.name for field in kind], map(_plain_type, column.flatten()), strict=True))
        (encoded, _), _ = _arrow_pictures(fields.get("bytes", nothing[0]))
        (_, paths), faults = _arrow_pictures(fields.get("path", nothing[1]))
        return (encoded, pc.if_else(encoded.is_valid(), pa.scalar(None, pa.string()), paths)), faults
    raise UnusableColumn("a picture is bytes, a path, a URL, or a struct of bytes and path")


def _plain_pictures(values: Sequence[Any]) -> tuple[tuple[pa.Array, pa.Array], Faults]:
    paths, faults = _plain_cells(values, {str}, _plain_picture)
    return (pa.nulls(len(values), pa.large_binary()), pa.array(paths, pa.string())), faults


def _plain_picture(value: Any) -> str:
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        value = value["path"]
    if isinstance(value, str) and not isinstance(value, JsonFloat):
        return value
    raise ValueError(f"{_start(value)} is neither a path nor a URL")


# ------------------------------------------------------------------------------------------- helpers


def _plain_type(column: pa.Array) -> pa.Array:
    """The same values without chunks, dictionaries, runs, views and extension types."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    kind = column.type
    if str(kind) == "extension<arrow.uuid>":
        return pa.array([None if v is None else str(uuid.UUID(bytes=v)) for v in column.storage.to_pylist()])
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_type(column.storage)
    if kinds.is_dictionary(kind):
        return _plain_type(column.dictionary.take(column.indices))  # decoding would check UTF-8
    if kinds.is_run_end_encoded(kind):
        return _plain_type(pc.run_end_decode(column))
    if kinds.is_string_view(kind):
        return column.cast(pa.large_string())
    if kinds.is_binary_view(kind):
        return column.cast(pa.large_binary())
    if kinds.is_map(kind):
        # A slice would bring all values of its column.
        return column.take(pa.array(range(len(column)), pa.int64()))
    if kinds.is_list_view(kind) or kinds.is_large_list_view(kind):
        # Arrow 26 casts some to invalid arrays.
        return pa.array(column.to_pylist(), pa.list_(kind.value_type))
    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        return column.cast(pa.list_(kind.value_type)).take(pa.array(range(len(column)), pa.int64()))
    return column


def _is_bytes_or_text(kind: pa.DataType) -> bool:
    is_text = kinds.is_string(kind) or kinds.is_large_string(kind)
    return bool(
        is_text or kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_fixed_size_binary(kind)
    )


def _scalars(column: pa.Array) -> list[pa.Scalar | None]:
    return [cell if cell.is_valid else None for cell in column]


def _each(
    values: Iterable[Any], text: Callable[[Any], str], fault: str = ""
) -> tuple[list[str | None], Faults]:
    """`text` of every value that is there; where it fails, `fault` or what the error says."""
    texts: list[str | None] = []
    faults: Faults = {}
    for row, value in enumerate(values):
        texts.append(None)
        if value is not None:
            try:
                texts[-1] = text(value)
            except (pa.ArrowException, ValueError, OverflowError, RecursionError) as error:
                faults[row] = fault or str(error)
    return texts, faults


def _plain_cells(
    values: Sequence[Any], usual: set[type], text: Callable[[Any], str], fault: str = ""
) -> tuple[list[str | None], Faults]:
    """The values if all are of `usual` types, else `text` of each.

    Bytes that were no UTF-8 are surrogates here, and so is half a pair, as JSON can escape it: neither is text.
    """
    texts: list[str | None] = list(values)
    faults: Faults = {}
    if not set(map(type, values)) <= {*usual, NoneType}:
        texts, faults = _each(values, text, fault)
    try:
        "".join(filter(None, texts)).encode()
    except UnicodeEncodeError:
        for row, found in enumerate(texts):
            if found and any("\ud800" <= sign <= "\udfff" for sign in found):
                texts[row], faults[row] = None, "is not UTF-8"
    return texts, faults


TEXT = Rule(_arrow_texts, _plain_texts)  # list of str, "" where missing
ID = Rule(_arrow_ids, _plain_ids)  # Arrow strings, null where missing
PICTURE = Rule(_arrow_pictures, _plain_pictures)  # encoded bytes, and paths or URLs, as Arrow arrays
AS_IT_IS = Rule(
    lambda column: (column, {}), lambda values: (pa.array(_plain_texts(values)[0], pa.string()), {})
)
