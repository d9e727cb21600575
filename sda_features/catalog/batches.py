"""The rows of a catalogue as Arrow batches of one schema, whatever its files hold; whole or in slices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from sda_features.tables.cells import ID, PICTURE, TEXT, Rule, one_line
from sda_features.tables.files import Block, Part, Table

BATCH_ROWS = 512
PROBLEMS = pa.list_(pa.struct([("reason", pa.string()), ("detail", pa.string())]))
ROWS = pa.schema(
    [
        ("row", pa.int64()),  # position in the catalogue, from 1
        ("item_id", pa.string()),
        ("texts", pa.list_(pa.string())),  # one for each text column, empty where missing
        ("picture", pa.large_binary()),
        ("picture_path", pa.string()),
        ("problems", PROBLEMS),
    ]
)


@dataclass(frozen=True)
class CatalogColumns:
    """Which columns of a table are read as what."""

    id: str
    texts: tuple[str, ...]
    image: str | None

    @property
    def rules(self) -> Mapping[str, Rule]:
        """Column -> how its cells are read; an id that is a text too is read as an id."""
        image = {} if self.image is None else {self.image: PICTURE}
        return {**dict.fromkeys(self.texts, TEXT), **image, self.id: ID}

    def batches(self, blocks: Iterable[Block], start: int) -> Iterator[pa.RecordBatch]:
        """Blocks of a table as batches of `ROWS`, numbered from `start` on."""
        for block in blocks:
            texts = [self._texts(block, name) for name in self.texts]
            nothing = pa.nulls(block.rows, pa.large_binary()), pa.nulls(block.rows, pa.string())
            pictures, paths = nothing if self.image is None else block.columns[self.image]
            rows = [list(row) for row in zip(*texts, strict=True)] if texts else [[]] * block.rows
            columns = [
                pa.array(np.arange(start, start + block.rows)),
                block.columns[self.id],
                pa.array(rows, ROWS.field("texts").type),
                pictures,
                paths,
                pa.array(self._problems(block), PROBLEMS),
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=ROWS)
            start += block.rows

    def _texts(self, block: Block, name: str) -> list[str]:
        values = block.columns[name]
        return [one_line(value or "") for value in values.to_pylist()] if name == self.id else values

    def _problems(self, block: Block) -> list[list[dict[str, str]]]:
        found: list[list[dict[str, str]]] = [[] for _ in range(block.rows)]
        for row, detail in block.damaged.items():
            found[row].append({"reason": "damaged_row", "detail": detail})
        reasons = {self.id: "unusable_id", self.image: "unusable_image"}
        for name, faults in block.faults.items():
            for row, detail in faults.items():
                reason = reasons.get(name, "unusable_text")
                found[row].append({"reason": reason, "detail": f"column {name}: {detail}"})
        return found


@dataclass(frozen=True)
class CatalogSlice:
    """Consecutive rows of a catalogue that can be read without the others, by another process too.

    Attributes:
        start: position of the first row, from 1.
        rows: number of rows.
        columns: columns that are read.
        table: the catalogue's.
        part: where the rows are.
    """

    start: int
    rows: int
    columns: CatalogColumns
    table: Table
    part: Part

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order, as batches of `ROWS`."""
        blocks = self.table.blocks_of(self.part, self.columns.rules, BATCH_ROWS)
        yield from self.columns.batches(blocks, self.start)


def cut_into_slices(table: Table, columns: CatalogColumns) -> list[CatalogSlice]:
    """Slices of a catalogue: one a row group of parquet, or one a file."""
    slices, start = [], 1
    alone = replace(table, parts=())  # a slice carries one part, not all
    for part, rows in table.pieces():
        if rows:
            slices.append(CatalogSlice(start, rows, columns, alone, part))
        start += rows
    return slices
