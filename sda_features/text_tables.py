"""Rows of CSV and JSON lines as they are written: no type is guessed, and a damaged row is one row.

Arrow's readers guess types from the first block (the id 007 becomes 7, a date in one column a time
stamp, an integer of 30 digits a float) and end at the first damaged row.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TextIO

from sda_features.cells import JsonFloat, UnusableColumn

LONGEST_FIELD = 1 << 24  # characters; an open quote would else take the rest of the file for one
UTF_16 = ("\udcff\udcfe", "\udcfe\udcff")  # how its first bytes come out
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


def csv_records(stream: TextIO) -> Iterator[Record | DamagedRow]:
    """The rows below the head line. Where a quote is not closed, every line it swallows is a damaged row."""
    csv.field_size_limit(LONGEST_FIELD)
    lines = _Lines(stream)
    reader = csv.reader(lines, strict=True)
    names = next(reader, [])
    while True:
        start = lines.number + 1
        lines.pending.clear()
        try:
            values = next(reader, None)
        except csv.Error as error:
            where = f"line {start}" if lines.number == start else f"lines {start} to {lines.number}"
            for line in lines.pending:
                yield DamagedRow(f"{where}: a quote is not balanced ({error})", _guess(names, line))
            continue
        if values is None:
            return
        if len(values) == len(names):
            yield dict(zip(names, [value or None for value in values], strict=True))
        elif values:
            detail = f"line {start}: Expected {len(names)} columns, got {len(values)}"
            yield DamagedRow(detail, dict(zip(names, values, strict=False)))


def json_records(stream: TextIO) -> Iterator[Record | DamagedRow]:
    """One object a line; numbers as they are written, `JsonFloat` where they have a point or an exponent."""
    decoder = json.JSONDecoder(parse_int=str, parse_float=JsonFloat, parse_constant=lambda name: None)
    lines = _Lines(stream)
    for number, line in enumerate(lines, start=1):
        lines.pending.clear()
        if not line.strip():
            continue
        try:
            record = decoder.decode(line)
        except (ValueError, RecursionError) as error:
            yield DamagedRow(f"line {number}: not JSON: {error or 'nested too deeply'}")
            continue
        yield record if isinstance(record, dict) else DamagedRow(f"line {number}: not a JSON object")


def blocks(records: Iterator[Record | DamagedRow], rows: int) -> Iterator[list[Record | DamagedRow]]:
    """Up to `rows` records at a time."""
    while block := list(islice(records, rows)):
        yield block


class _Lines:
    """Lines with their ends; bytes that were no UTF-8 are surrogates, which the rules of cells.py find.

    Attributes:
        number: lines read.
        pending: lines since it was last cleared.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.number = 0
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


def _guess(names: list[str], line: str) -> Record:
    return dict(zip(names, next(csv.reader([line]), []), strict=False))
