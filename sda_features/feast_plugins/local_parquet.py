"""Local parquet of a Feast source as an Arrow dataset, and tables in the form that Feast's converters take."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pa_dataset
from feast import FileSource
from feast.data_format import ParquetFormat
from feast.data_source import DataSource

from sda_features.feast_plugins.point_in_time import Integers
from sda_features.offline.empty_slot import EMPTY_FILE
from sda_features.offline.location import is_url, parquet_names
from sda_features.offline.table import dataset_of, open_table, read_table

T = TypeVar("T")

FLOATS = {pa.float32(), pa.float64()}


class Unsupported(Exception):
    """The stock store has to read this; the message says why. It never reaches a user."""


def read_source(
    source: DataSource, repo_path: Path | str | None, read: Callable[[pa_dataset.FileSystemDataset], T]
) -> T:
    """`read` a source that is a parquet file, a folder of them, or a Delta table at a URL.

    Files may be replaced meanwhile.

    Raises:
        Unsupported: the source is something else, or its files differ in their schema.
    """
    if type(source) is not FileSource or not isinstance(source.file_format, ParquetFormat | None):
        raise Unsupported(f"{type(source).__name__} of the format {getattr(source, 'file_format', None)}")
    path = FileSource.get_uri_for_file_path(repo_path, source.path)
    if source.s3_endpoint_override or getattr(source, "connection_ref", None) is not None:
        raise Unsupported("files with an endpoint or a connection of their own")
    if is_url(path):
        if open_table(path) is None:
            raise Unsupported("files that are not local, and no Delta table")
    elif Path(path).is_file():
        return read(_uniform(pa_dataset.dataset([path], format="parquet")))
    elif not Path(path).is_dir():
        raise Unsupported(f"no such file: {path}")
    elif others := [entry.name for entry in Path(path).iterdir() if not _is_part(entry)]:
        raise Unsupported(f"{path} holds more than parquet files, such as {others[0]}")
    return read_table(path, lambda dataset: read(_uniform(dataset or _empty(path))))


def check_columns(
    dataset: pa_dataset.FileSystemDataset, key: str, times: Sequence[str], features: Sequence[str]
) -> None:
    """Check that a dataset has these columns once, of types that come out of pandas as they went in.

    Raises:
        Unsupported: it has not.
    """
    schema = dataset.schema
    for name in (key, *times, *features):
        if len(schema.get_all_field_indices(name)) != 1:
            raise Unsupported(f"no column {name}, or several")
    if key_kind(schema.field(key).type) is None:
        raise Unsupported(f"keys of type {schema.field(key).type}")
    for name in times:
        if not pa.types.is_timestamp(schema.field(name).type):
            raise Unsupported(f"timestamps of type {schema.field(name).type}")
    for name in features:
        if not _is_plain(schema.field(name).type):
            raise Unsupported(f"features of type {schema.field(name).type}")


def key_kind(data_type: pa.DataType) -> str | None:
    """`string` or `integer`; None for another type. Keys of one kind can be compared."""
    if pa.types.is_string(data_type) or pa.types.is_large_string(data_type):
        return "string"
    return "integer" if pa.types.is_integer(data_type) else None


def read_rows(dataset: pa_dataset.FileSystemDataset, rows: Integers, columns: Sequence[str]) -> pa.Table:
    """The given rows of a dataset; row groups without any of them are not read.

    Args:
        dataset: parquet files.
        rows: positions in the order of the files, ascending, each once.
        columns: columns to return.
    """
    schema = pa.schema([dataset.schema.field(name) for name in columns])
    tables, start = [schema.empty_table()], 0
    for fragment in dataset.get_fragments():
        for piece in fragment.split_by_row_group(schema=dataset.schema):
            count = sum(group.num_rows for group in piece.row_groups)
            here = rows[slice(*np.searchsorted(rows, [start, start + count]))] - start
            if len(here):
                table = piece.to_table(schema=dataset.schema, columns=list(columns))
                tables.append(table if len(here) == count else table.take(pa.array(here)))
            start += count
    return pa.concat_tables(tables)


def to_feast(table: pa.Table) -> pa.Table:
    """A table as stock Feast would return it: plain lists, UTC, null for NaN, one chunk a column.

    Feast's converters read the first batch of a table and drop the others. Only a column past
    2**31 numbers keeps several chunks.

    Raises:
        Unsupported: a list holds nulls, which pandas would turn into NaN.
    """
    for position, field in enumerate(table.schema):
        column = _plain(table.column(position))
        if column.num_chunks != 1:
            with contextlib.suppress(pa.ArrowInvalid, pa.ArrowCapacityError):  # past one array's offsets
                column = pa.chunked_array([column.combine_chunks()], column.type)
        table = table.set_column(position, pa.field(field.name, column.type), column)
    return table.replace_schema_metadata(None)


def zoned(data_type: pa.TimestampType) -> pa.TimestampType:
    """The timestamp type in UTC, as which Feast reads timestamps without a time zone."""
    return pa.timestamp(data_type.unit, tz="UTC")


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    data_type = column.type
    if pa.types.is_timestamp(data_type):
        return column.cast(zoned(data_type))
    if pa.types.is_floating(data_type):
        return pc.if_else(pc.is_nan(column), pa.scalar(None, data_type), column)
    if not _is_list(data_type):
        return column
    if any(chunk.flatten().null_count for chunk in column.chunks):
        raise Unsupported("nulls within a list")
    return column.cast(pa.list_(data_type.value_type))


def _is_plain(data_type: pa.DataType) -> bool:
    """Whether pandas keeps values of the type."""
    if _is_list(data_type):
        return pa.types.is_integer(data_type.value_type) or data_type.value_type in FLOATS
    return data_type in FLOATS | {pa.bool_(), pa.binary(), pa.large_binary()} or bool(key_kind(data_type))


def _is_list(data_type: pa.DataType) -> bool:
    return isinstance(data_type, pa.ListType | pa.LargeListType | pa.FixedSizeListType)


def _is_part(entry: Path) -> bool:
    """A parquet file, or what readers of parquet folders pass over: names that start with a dot, and a log."""
    return entry.name.startswith(".") or (
        entry.name == "_delta_log" if entry.is_dir() else entry.suffix == ".parquet" and entry.name[0] != "_"
    )


def _empty(path: str) -> pa_dataset.FileSystemDataset:
    if EMPTY_FILE not in parquet_names(path):
        raise Unsupported("no files")
    return dataset_of(path, [EMPTY_FILE])


def _uniform(dataset: pa_dataset.FileSystemDataset) -> pa_dataset.FileSystemDataset:
    if any(not fragment.physical_schema.equals(dataset.schema) for fragment in dataset.get_fragments()):
        raise Unsupported("files of several schemas")
    return dataset
