"""Rows of CSV and JSON lines as they are written: no type is guessed, and a damaged row is one row.

Arrow's readers guess types from the first block (the id 007 becomes 7, a date in one column a time
stamp, an integer of 30 digits a float) and end at the first damaged row. Here lines are taken apart
by the standard library, many at once; where one of them is damaged, one by one.
"""

from __future__ import annotations

import csv
import json
import secrets
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, TextIO

from sda_features.tables.cells import JsonFloat, UnusableColumn

LONGEST_FIELD = 1 << 24  # characters; an open quote would else take the rest of the file for one
UTF_16 = ("\udcff\udcfe", "\udcfe\udcff")  # how its first bytes come out
LINES = 1 << 12  # that are taken apart together
DECODER = json.JSONDecoder(parse_int=str, parse_float=JsonFloat, parse_constant=lambda name: None)
Record = dict[str, Any]


@dataclass(frozen=True)
class DamagedRow:
    """A row that cannot be taken apart.

    Attributes:
        detail: why.
        cells: what seems to stand in its columns, as far as can be told.
    """

    detail: str
    cells: Record = field(default_factory=dict)


@dataclass(frozen=True)
class Rows:
    """Consecutive rows, column by column.

    Attributes:
        count: how many.
        columns: name -> cells; None where there is none.
        damaged: row -> why it cannot be taken apart.
    """

    count: int
    columns: dict[str, list[Any]]
    damaged: dict[int, str]


def csv_columns(stream: TextIO) -> list[str]:
    """Names in the head line, as they are written.

    Raises:
        UnusableColumn: two columns have one name, or it cannot be read.
    """
    lines = _Lines(stream)
    try:
        names = next(csv.reader(lines, strict=True), [])
        "".join(names).encode()
    except (csv.Error, UnicodeEncodeError) as error:
        raise UnusableColumn(f"its first line does not name columns: {error}") from None
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UnusableColumn(
            f"{len(names)} columns of which several are named {', '.join(map(repr, repeated))}"
        )
    return names


def json_columns(stream: TextIO) -> list[str]:
    """Names of all objects, in order of appearance; read to the end for it."""
    names: dict[str, None] = {}
    for records in _json_blocks(stream, LINES):
        names.update(dict.fromkeys(chain.from_iterable(r for r in records if isinstance(r, dict))))
    return list(names)


def csv_rows(stream: TextIO, most: int, wanted: Collection[str]) -> Iterator[Rows]:
    """The rows below the head line, at most `most` at a time.

    Where a quote is not closed, every line it swallows is a damaged row.
    """
    csv.field_size_limit(LONGEST_FIELD)
    head = _Lines(stream)
    names = next(csv.reader(head, strict=True), [])
    places = {name: names.index(name) for name in wanted if name in names}
    number = head.number
    while lines := list(islice(stream, min(most, LINES))):
        if (rows := _csv_block(lines, stream, len(names))) is None:
            rest = _csv_records(names, _Lines(chain(lines, stream), number))
            while block := list(islice(rest, most)):
                yield _rows(block, wanted)
            return
        number += len(lines)
        columns = list(zip(*rows, strict=True))
        cells = {name: [cell or None for cell in columns[at]] for name, at in places.items()} if rows else {}
        yield Rows(len(rows), {name: cells.get(name) or [None] * len(rows) for name in wanted}, {})


def _csv_block(lines: list[str], stream: TextIO, width: int) -> list[list[str]] | None:
    """The rows of `lines`, to which what their last row needs is added; None if one of them is damaged."""
    if "".join(lines).count('"') % 2:
        size = 0
        for line in stream:
            lines.append(line)
            size += len(line)
            if line.count('"') % 2 or size > LONGEST_FIELD:
                break
    try:
        rows = [row for row in csv.reader(lines, strict=True) if row]
    except csv.Error:
        return None
    return rows if set(map(len, rows)) <= {width} else None


def _csv_records(names: list[str], lines: _Lines) -> Iterator[Record | DamagedRow]:
    reader = csv.reader(lines, strict=True)
    while True:
        start = lines.number + 1
        lines.pending.clear()
        try:
            values = next(reader, None)
        except csv.Error as error:
            where = f"line {start}" if lines.number == start else f"lines {start} to {lines.number}"
            for line in lines.pending:
                guess = dict(zip(names, next(csv.reader([line]), []), strict=False))
                yield DamagedRow(f"{where}: a quote is not balanced ({error})", guess)
            continue
        if values is None:
            return
        if len(values) == len(names):
            yield dict(zip(names, [value or None for value in values], strict=True))
        elif values:
            detail = f"line {start}: Expected {len(names)} columns, got {len(values)}"
            yield DamagedRow(detail, dict(zip(names, values, strict=False)))


def json_rows(stream: TextIO, most: int, wanted: Collection[str]) -> Iterator[Rows]:
    """The objects, one a line, at most `most` at a time; numbers as written, `JsonFloat` if not integers."""
    for records in _json_blocks(stream, min(most, LINES)):
        yield _rows(records, wanted)


def _json_blocks(stream: TextIO, most: int) -> Iterator[Sequence[Record | DamagedRow]]:
    lines = _Lines(stream)
    while block := list(islice(lines, 1)) + list(islice(stream, most - 1)):
        records: Sequence[Record | DamagedRow] | None = _json_block([x for x in block if not x.isspace()])
        if records is None:
            records = list(_json_records(_Lines(iter(block), lines.number - 1)))
        lines.number += len(block) - 1
        lines.pending.clear()
        if records:
            yield records


def _json_block(lines: list[str]) -> list[Record] | None:
    """The objects of lines that all hold one, read as a list with a random mark between them."""
    mark = secrets.token_hex(8)
    separator = f',"{mark}",'
    try:
        found = DECODER.decode(f"[{separator.join(lines)}]")
    except (ValueError, RecursionError):
        return None
    whole = len(found) == max(2 * len(lines) - 1, 0) and set(found[1::2]) <= {mark}
    return found[::2] if whole and set(map(type, found[::2])) <= {dict} else None


def _json_records(lines: _Lines) -> Iterator[Record | DamagedRow]:
    for line in lines:
        lines.pending.clear()
        if not line.strip():
            continue
        try:
            record = DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            yield DamagedRow(f"line {lines.number}: not JSON: {error or 'nested too deeply'}")
            continue
        yield record if isinstance(record, dict) else DamagedRow(f"line {lines.number}: not a JSON object")


def _rows(records: Sequence[Record | DamagedRow], wanted: Collection[str]) -> Rows:
    damaged = {row: r.detail for row, r in enumerate(records) if isinstance(r, DamagedRow)}
    cells = [r.cells if isinstance(r, DamagedRow) else r for r in records]
    return Rows(len(records), {name: [cell.get(name) for cell in cells] for name in wanted}, damaged)


class _Lines:
    """Lines with their ends; bytes that were no UTF-8 are surrogates, which the rules of cells.py find.

    Attributes:
        number: lines read.
        pending: lines since it was last cleared.
    """

    def __init__(self, stream: Iterator[str], number: int = 0) -> None:
        self._stream = stream
        self.number = number
        self.pending: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._stream)
        if not self.number and line.startswith(UTF_16):
            raise UnusableColumn("it is written in UTF-16; save it as UTF-8")
        self.number += 1
        self.pending.append(line)
        return line
