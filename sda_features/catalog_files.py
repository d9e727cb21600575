"""The files of a catalogue as Arrow batches: parquet, JSONL or CSV, local or at a URL, whole or in slices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.dataset as pa_dataset

from sda_features.errors import CatalogError
from sda_features.locations import file_system

ROW = "__row"  # column of a batch: 1-based position of its rows in the catalogue
BATCH_ROWS = 512
FORMAT_OF_SUFFIX = {".parquet": "parquet", ".jsonl": "json", ".ndjson": "json", ".csv": "csv"}


@dataclass(frozen=True)
class CatalogSlice:
    """Consecutive rows of a catalogue that can be read without the others, by another process too.

    Attributes:
        start: position of the first row, from 1.
        rows: number of rows.
        columns: columns that are read.
        fragment: where the rows are.
        schema: types of all columns of the catalogue.
    """

    start: int
    rows: int
    columns: tuple[str, ...]
    fragment: pa_dataset.Fragment
    schema: pa.Schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order, with the column `ROW`."""
        batches = self.fragment.to_batches(
            self.schema, columns=list(self.columns), batch_size=BATCH_ROWS, batch_readahead=2
        )
        yield from numbered(batches, self.start)


def open_dataset(path: Path | str) -> pa_dataset.Dataset:
    """The rows of a file or folder; `key=value` folders of partitioned parquet become columns.

    Raises:
        CatalogError: no such file, or not one of a known format.
    """
    files, name = file_system(path, "catalogue", CatalogError)
    try:
        info = files.info(name)
    except FileNotFoundError:
        raise CatalogError(
            f"Catalogue {path} does not exist; expected a parquet, JSONL or CSV file."
        ) from None
    except OSError as error:
        raise CatalogError(f"Catalogue {path} cannot be read: {error}") from None
    is_folder, suffix = info["type"] == "directory", PurePath(name).suffix
    kind = "parquet" if is_folder else FORMAT_OF_SUFFIX.get(suffix.lower())
    if kind is None:
        raise CatalogError(f"Catalogue {path} ends in {suffix!r}; expected {', '.join(FORMAT_OF_SUFFIX)}.")
    if info["size"] == 0 and not is_folder:
        raise CatalogError(f"{path} has no rows; expected at least one item.")
    # Arrow reads a local file by itself: faster than through fsspec.
    arrows_files = None if isinstance(path, Path) else files
    try:
        if kind != "csv":
            partitioning = "hive" if is_folder else None
            return pa_dataset.dataset(name, filesystem=arrows_files, format=kind, partitioning=partitioning)
        # Every CSV column is text: a guessed type would turn the id 007 into 7.
        parse = pa_csv.ParseOptions(newlines_in_values=True)
        with files.open(name) as stream, pa_csv.open_csv(stream, parse_options=parse) as head:
            names = head.schema.names
        convert = pa_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
        )
        text = pa_dataset.CsvFileFormat(parse, convert_options=convert)
        return pa_dataset.dataset(name, filesystem=arrows_files, format=text)
    except (pa.ArrowInvalid, OSError) as error:
        raise CatalogError(f"{path} is not a readable {kind} file: {error}") from None


def cut_into_slices(dataset: pa_dataset.Dataset, columns: Sequence[str]) -> list[CatalogSlice]:
    """Slices of `columns`: one a row group of parquet, or one a file."""
    slices, start = [], 1
    for fragment in dataset.get_fragments():
        if isinstance(fragment, pa_dataset.ParquetFileFragment):
            # count_rows() of a row group's fragment would count the whole file.
            pieces = [(piece, piece.row_groups[0].num_rows) for piece in fragment.split_by_row_group()]
        else:
            pieces = [(fragment, fragment.count_rows())]
        for piece, rows in pieces:
            if rows:
                slices.append(CatalogSlice(start, rows, tuple(columns), piece, dataset.schema))
            start += rows
    return slices


def numbered(batches: Iterable[pa.RecordBatch], start: int) -> Iterator[pa.RecordBatch]:
    """Add the column `ROW`, from `start` on."""
    for batch in batches:
        rows = np.arange(start, start + batch.num_rows)
        start += batch.num_rows
        yield batch.append_column(ROW, pa.array(rows))


def as_text(value: Any) -> str:
    """A cell as one line of text: lists are joined by commas, white space is collapsed, null is empty."""
    if isinstance(value, list):
        return ", ".join(filter(None, map(as_text, value)))
    if value is None or isinstance(value, (bytes, dict)):
        return ""
    return " ".join(str(value).split())
