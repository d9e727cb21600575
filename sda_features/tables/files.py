"""Tables of any format opened in one way: catalogues, interaction logs, files of vectors.

A table is a file of parquet, CSV or JSON lines, or a folder of files of one format. Its columns are
those of all its rows: one that the first rows or the first files lack is null there. What a
cell may be is in cells.py.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pa_dataset
import pyarrow.types as kinds

from sda_features.errors import SDAError
from sda_features.locations import file_system, shown
from sda_features.tables.cells import ID, TEXT, Faults, Rule, UnusableColumn
from sda_features.tables.text import csv_columns, csv_rows, json_columns, json_rows

FORMAT_OF_SUFFIX = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".json": "json",
}
BLOCK_ROWS = 1 << 17  # where all rows are held at once
INDEX_COLUMN = re.compile(r"__index_level_\d+__|Unnamed: \d+|")  # what pandas calls an index without a name


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a table.

    Attributes:
        rows: how many.
        columns: name -> the values that its rule made.
        faults: name -> row of the block -> what is wrong with the cell.
        damaged: row of the block -> why the row cannot be read; its cells are guesses.
    """

    rows: int
    columns: Mapping[str, Any]
    faults: Mapping[str, Faults]
    damaged: Faults

    @classmethod
    def of(cls, rows: int, made: Mapping[str, tuple[Any, Faults]], damaged: Faults | None = None) -> Block:
        """What the rules made of each column: its values and faults."""
        faults = {name: found for name, (_, found) in made.items() if found}
        return cls(rows, {name: values for name, (values, _) in made.items()}, faults, damaged or {})


@dataclass(frozen=True)
class ParquetPart:
    """A parquet file, or row groups of it, with the columns that its folder's name gives; for other processes too."""

    path: str
    fragment: pa_dataset.Fragment
    schema: pa.Schema

    def types(self) -> Mapping[str, pa.DataType | None]:
        """Column -> its type."""
        if repeated := sorted({name for name in self.schema.names if self.schema.names.count(name) > 1}):
            raise UnusableColumn(f"several of its columns are named {', '.join(map(repr, repeated))}")
        return dict(zip(self.schema.names, self.schema.types, strict=True))

    def pieces(self) -> list[tuple[ParquetPart, int]]:
        """What can be read by itself, with its number of rows: one a row group."""
        # count_rows() of a row group's fragment would count the whole file.
        return [
            (ParquetPart(self.path, piece, self.schema), piece.row_groups[0].num_rows)
            for piece in self.fragment.split_by_row_group()
        ]

    def blocks(self, wanted: Mapping[str, Rule], rows: int) -> Iterator[Block]:
        """The rows in order, at most `rows` at a time."""
        present = [name for name in wanted if name in self.schema.names]
        batches = self.fragment.to_batches(
            self.schema, columns=present, batch_size=rows, batch_readahead=2, fragment_readahead=1
        )
        for batch in batches:
            made = {
                name: _named(name, rule.arrow, batch[name] if name in present else pa.nulls(batch.num_rows))
                for name, rule in wanted.items()
            }
            yield Block.of(batch.num_rows, made)


@dataclass(frozen=True)
class TextPart:
    """A CSV or JSON lines file."""

    path: str
    files: Any
    format: str

    def types(self) -> Mapping[str, pa.DataType | None]:
        """Columns without types: as written. JSON is read to its end for it."""
        with self._opened() as stream:
            return dict.fromkeys(csv_columns(stream) if self.format == "csv" else json_columns(stream))

    def pieces(self) -> list[tuple[TextPart, int]]:
        """The file, with its number of rows."""
        return [(self, sum(block.rows for block in self.blocks({}, 1 << 16)))]

    def blocks(self, wanted: Mapping[str, Rule], rows: int) -> Iterator[Block]:
        """The rows in order, at most `rows` at a time."""
        read = csv_rows if self.format == "csv" else json_rows
        with self._opened() as stream:
            for found in read(stream, rows, wanted.keys()):
                made = {name: rule.plain(found.columns[name]) for name, rule in wanted.items()}
                yield Block.of(found.count, made, found.damaged)

    def _opened(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(self.files.open(self.path, "rb"), "utf-8-sig", "surrogateescape", "")


Part = ParquetPart | TextPart


@dataclass(frozen=True)
class Table:
    """An opened table.

    Attributes:
        name: its path or URL, for messages.
        parts: its files.
        types: of each file, column -> type; None: as written.
        error: raised for all that is wrong with it.
    """

    name: str
    parts: Sequence[Part]
    types: Sequence[Mapping[str, pa.DataType | None]]
    error: type[SDAError]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names in order of appearance."""
        return tuple(dict.fromkeys(name for types in self.types for name in types))

    @property
    def data_columns(self) -> tuple[str, ...]:
        """The columns without those in which pandas keeps an index that has no name."""
        return tuple(name for name in self.columns if not INDEX_COLUMN.fullmatch(name))

    def check(self, wanted: Mapping[str, Rule]) -> None:
        """Check that there is a rule for the type of each column, in every file, and that the types go together.

        Raises:
            SDAError: the one of this table; names file, column and type.
        """
        first: dict[str, tuple[Part, pa.DataType]] = {}
        for part, types in zip(self.parts, self.types, strict=True):
            for name, rule in wanted.items():
                kind = types.get(name)
                if kind is None or kinds.is_null(kind):
                    continue
                with self._reading(part):
                    _named(name, rule.arrow, pa.nulls(1, kind))
                other, seen = first.setdefault(name, (part, kind))
                if rule in (TEXT, ID) and _shape(seen) != _shape(kind):
                    raise self.error(
                        f"{part.path}: column {name!r} is {kind}, and in {other.path} it is {seen}. Write it alike "
                        "in all files."
                    )

    def blocks(self, wanted: Mapping[str, Rule], rows: int) -> Iterator[Block]:
        """All rows in order, at most `rows` at a time.

        Raises:
            SDAError: the one of this table, for all that goes wrong on the way.
        """
        for part in self.parts:
            yield from self.blocks_of(part, wanted, rows)

    def blocks_of(self, part: Part, wanted: Mapping[str, Rule], rows: int) -> Iterator[Block]:
        """Likewise, of one of its parts or of a piece of one."""
        with self._reading(part):
            yield from part.blocks(wanted, rows)

    def read(self, wanted: Mapping[str, Rule]) -> pa.Table:
        """Columns of all rows at once; rules that make Arrow arrays.

        Raises:
            SDAError: the one of this table, if a cell or a row cannot be used.
        """
        self.check(wanted)
        made, before = [pa.table({name: rule.plain([])[0] for name, rule in wanted.items()})], 0
        for block in self.blocks(wanted, BLOCK_ROWS):
            cells = [
                (row, f"column {name}: {why}")
                for name, faults in block.faults.items()
                for row, why in faults.items()
            ]
            if wrong := sorted([*block.damaged.items(), *cells]):
                examples = "; ".join(f"row {before + row + 1}: {why}" for row, why in wrong[:3])
                raise self.error(
                    f"{self.name}: {len(wrong)} cells or rows are not usable, {examples}. Repair them."
                )
            made.append(pa.table(dict(block.columns)))
            before += block.rows
        try:
            return pa.concat_tables(made[1:] or made, promote_options="permissive")
        except pa.ArrowException as error:
            raise self.error(f"{self.name}: its files disagree: {_message(error)}.") from None

    def pieces(self) -> Iterator[tuple[Part, int]]:
        """What of it can be read by itself, in order, with the number of rows."""
        for part in self.parts:
            with self._reading(part):
                pieces = part.pieces()
            yield from pieces

    def _reading(self, part: Part) -> Any:
        return _one_error(self.error, part.path)


def open_table(location: Path | str, what: str, error: type[SDAError]) -> Table:
    """Open a file or folder; `key=value` folders of partitioned parquet become columns.

    Args:
        location: path or fsspec URL.
        what: what it is, for messages.
        error: raised for all that is wrong with it.
    """
    files, name = file_system(location, what, error)
    with _one_error(error, shown(location)):
        try:
            info = files.info(name)
        except FileNotFoundError:
            raise error(
                f"{what.capitalize()} {shown(location)} does not exist; expected a parquet, JSONL or CSV file, or a "
                "folder of such files."
            ) from None
        if info["type"] == "directory":
            parts = _folder(files, name, location, error)
        elif info["type"] == "file":
            parts = _file(files, name, info["size"], location, error)
        else:
            raise error(f"{shown(location)} is neither a file nor a folder.")
    types = []
    for part in parts:
        with _one_error(error, part.path):
            types.append(part.types())
    return Table(shown(location), parts, types, error)


def _file(files: Any, name: str, size: int, location: Path | str, error: type[SDAError]) -> list[Part]:
    suffix = PurePath(name.partition("?")[0] if "://" in name else name).suffix
    kind = FORMAT_OF_SUFFIX.get(suffix.lower())
    if kind is None:
        raise error(f"{shown(location)} ends in {suffix!r}; expected {', '.join(FORMAT_OF_SUFFIX)}.")
    if size == 0:
        return []
    if kind == "parquet":
        return _parquet_parts(files, name, location, error)
    return [TextPart(name, files, kind)]


def _folder(files: Any, name: str, location: Path | str, error: type[SDAError]) -> list[Part]:
    """The files of a folder and its folders, but not hidden ones and Spark's own, such as _SUCCESS."""
    found: dict[str, Any] = files.find(name, detail=True, on_error="raise")
    inside = {path: PurePath(path.removeprefix(name).lstrip("/")) for path in found}
    if any("_delta_log" in path.parts for path in inside.values()):
        raise error(
            f"{shown(location)} is a Delta table, whose files hold deleted rows too; export it as parquet."
        )
    seen = {path: inside[path] for path in found if not any(step[0] in "._" for step in inside[path].parts)}
    if not seen:
        raise error(f"{shown(location)} is a folder without files; expected parquet, JSONL or CSV.")
    of_format: dict[str, list[str]] = {}
    for path, inner in seen.items():
        if found[path]["type"] != "file":
            raise error(f"{path} is not a file.")
        kind = FORMAT_OF_SUFFIX.get(inner.suffix.lower(), "parquet" if not inner.suffix else "")
        of_format.setdefault(kind, []).append(path)
    if len(of_format) > 1 or "" in of_format:
        examples = " and ".join(sorted(paths[0] for paths in of_format.values()))
        raise error(
            f"{shown(location)}: expected files of one format, parquet, JSONL or CSV; it holds {examples}."
        )
    ((kind, paths),) = of_format.items()
    if kind == "parquet":
        return _parquet_parts(files, name, location, error)
    return [TextPart(path, files, kind) for path in sorted(paths) if found[path]["size"]]


def _parquet_parts(files: Any, name: str, location: Path | str, error: type[SDAError]) -> list[Part]:
    # Arrow reads a local file by itself: faster than through fsspec.
    arrows_files = None if isinstance(location, Path) else files
    dataset = partial(
        pa_dataset.dataset, name, filesystem=arrows_files, format="parquet", schema=pa.schema([])
    )
    keys = {
        step.partition("=")[0]
        for path in dataset(partitioning=None).files
        for step in PurePath(path.removeprefix(name)).parts[:-1]
        if "=" in step
    }
    # As text: a guessed type would turn the shelf 007 into 7.
    partitioning = pa_dataset.partitioning(
        pa.schema([(key, pa.string()) for key in sorted(keys)]), flavor="hive"
    )
    parts: list[Part] = []
    for fragment in dataset(partitioning=partitioning if keys else None).get_fragments():
        with _one_error(error, fragment.path):
            schema = fragment.physical_schema
        given = pa_dataset.get_partition_keys(fragment.partition_expression)
        for key in sorted(keys):  # of a column that the file has too, the folder's name counts
            kind = pa.string() if key in given else pa.null()
            if key not in schema.names:
                schema = schema.append(pa.field(key, kind))
            elif key in given:
                schema = schema.set(schema.get_field_index(key), pa.field(key, kind))
        parts.append(ParquetPart(fragment.path, fragment, schema))
    return parts


@contextmanager
def _one_error(error: type[SDAError], path: str) -> Iterator[None]:
    """Whatever libraries raise while a file is read becomes the one error that names it."""
    try:
        yield
    except (SDAError, GeneratorExit):
        raise
    except UnusableColumn as cause:
        raise error(f"{path}: {cause}.") from None
    except Exception as cause:
        raise error(f"{path} cannot be read: {_message(cause)}") from cause


def _message(cause: Exception) -> str:
    """One line, without what a URL asks: it may be a signature."""
    line = (str(cause) or type(cause).__name__).partition("\n")[0]
    return re.sub(r"(\w+://[^\s?'\"]*)\?[^\s'\"]*", r"\1?...", line)


def _named(name: str, rule: Callable[[pa.Array], tuple[Any, Faults]], column: pa.Array) -> tuple[Any, Faults]:
    try:
        return rule(column)
    except UnusableColumn as cause:
        raise UnusableColumn(f"column {name!r} is {column.type}, which is not usable here: {cause}") from None


def _shape(kind: pa.DataType) -> str:
    """What may stand for each other in two files: single values; lists; structs; maps."""
    if kinds.is_dictionary(kind) or kinds.is_run_end_encoded(kind):
        return _shape(kind.value_type)
    if kinds.is_struct(kind) or kinds.is_map(kind):
        return "struct" if kinds.is_struct(kind) else "map"
    return "list" if kinds.is_nested(kind) else "value"
