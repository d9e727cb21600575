"""The item catalogue as a stream of items, and the report of the rows that are bad.

A catalogue is read twice, never held: a first pass over the id column counts rows and finds
duplicate ids (8 bytes a row), a second one yields items. Ten million rows fit in 80 MB. The second
pass can be cut into slices that other processes read.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL.Image import Image

from sda_features.artifacts import atomic_file
from sda_features.catalog.batches import BATCH_ROWS, CatalogColumns, CatalogSlice, cut_into_slices
from sda_features.catalog.pictures import Picture, Row, pictures_ahead
from sda_features.config import CatalogSettings
from sda_features.errors import CatalogError
from sda_features.tables.cells import ID
from sda_features.tables.files import open_table


@dataclass(frozen=True)
class Item:
    """One catalogue row whose id is usable.

    Attributes:
        row: 1-based position in the catalogue.
        item_id: the id, as text.
        fields: text column -> value, in prompt order, blanks left out; empty when there is no text.
        image: RGB picture, or None when missing, not usable, or of an item known already.
        content_hash: 128 bits (hex) over fields, picture bytes and what is wrong with the picture;
            changes when the item does. With a suffix if the picture could not be reached.
        shrunk: whether `image` is as small already as the encoder needs it.
    """

    row: int
    item_id: str
    fields: dict[str, str]
    image: Image | None
    content_hash: str
    shrunk: bool = False


@dataclass
class CatalogReport:
    """The rows that are not fully usable, each with the reason.

    A row is counted once however many problems it has; its other modality is still used.

    Attributes:
        rows: rows of the catalogue.
        problems: row, item_id, reason and detail of each.
        unreachable: pictures that could not be reached; what is stored of such an item is kept.
    """

    rows: int
    problems: list[dict[str, Any]] = field(default_factory=list)
    unreachable: int = 0
    _bad: set[int] = field(default_factory=set)

    def add(self, row: int, item_id: str | None, reason: str, detail: str) -> None:
        """Quarantine one row, or one modality of it."""
        self.problems.append({"row": row, "item_id": item_id, "reason": reason, "detail": detail})
        self._bad.add(row)
        self.unreachable += reason == "image_unreachable"

    @property
    def bad_rows(self) -> int:
        """Number of distinct rows with at least one problem."""
        return len(self._bad)

    def reasons(self) -> dict[str, int]:
        """Reason -> count, most frequent first."""
        return dict(Counter(problem["reason"] for problem in self.problems).most_common())

    def write(self, path: Path) -> None:
        """Write the problems as JSON lines, in row order."""
        with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
            for problem in sorted(self.problems, key=lambda problem: problem["row"]):
                stream.write(json.dumps(problem, ensure_ascii=False) + "\n")

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons().items())
        return f"{self.bad_rows} of {self.rows} rows have problems" + (f": {reasons}" if reasons else "")


class Catalog:
    """An opened catalogue: its columns are checked, its rows are counted.

    Args:
        settings: where it is and which columns are read.

    Raises:
        CatalogError: missing file, unknown format, unknown column, or no rows.
    """

    def __init__(self, settings: CatalogSettings):
        self.settings = settings
        self._table = open_table(settings.path, "catalogue", CatalogError)
        columns = self._table.columns
        self.image_column = settings.image_column or ("image" if "image" in columns else None)
        given = settings.text_columns
        self.text_columns = given or tuple(
            name for name in self._table.data_columns if name not in (settings.id_column, self.image_column)
        )
        required = [settings.id_column, *given, *([settings.image_column] if settings.image_column else [])]
        if self._table.parts and (missing := [name for name in required if name not in columns]):
            raise CatalogError(
                f"{self._table.name} has no column {', '.join(map(repr, missing))}. Its columns are "
                f"{', '.join(columns)}. Name the right ones (--id-column, --text-columns, --image-column)."
            )
        if self.image_column in (settings.id_column, *given):
            raise CatalogError(
                f"Column {self.image_column!r} holds pictures, and cannot be id or text as well."
            )
        self._columns = CatalogColumns(settings.id_column, self.text_columns, self.image_column)
        self._table.check(self._columns.rules)
        self.rows, repeated = self._scan_ids()
        self._first_rows = self._find_first_rows(repeated)
        if self.rows == 0:
            raise CatalogError(f"{self._table.name} has no rows; expected at least one item.")
        self.report = CatalogReport(self.rows)

    def ids(self) -> Iterator[str]:
        """Yield the ids in file order, repeated ones too; reads no other column."""
        yield from filter(None, self.ids_of_rows())

    def ids_of_rows(self, guessed: bool = True) -> Iterator[str]:
        """Yield the id of every row in file order, empty text where there is none; `guessed`: of damaged rows, too."""
        for block in self._table.blocks({self._columns.id: ID}, 1 << 16):
            for row, item_id in enumerate(block.columns[self._columns.id].to_pylist()):
                yield "" if item_id is None or (not guessed and row in block.damaged) else item_id

    def slices(self) -> list[CatalogSlice]:
        """Cut the catalogue into runs of rows that can be read apart: parquet row groups, or whole files."""
        return cut_into_slices(self._table, self._columns)

    def for_workers(self) -> Catalog:
        """This catalogue for other processes that read its slices: paths are absolute, bad rows are only reported."""
        given = {"path": self.settings.path, "image_root": self.settings.image_root}
        absolute = {name: path.resolve() for name, path in given.items() if isinstance(path, Path)}
        other = copy.copy(self)
        other.settings = self.settings.model_copy(
            update={**absolute, "max_bad_rows": 1.0, "max_unreachable": 1.0}
        )
        return other

    def add_problems(self, problems: Iterable[Mapping[str, Any]]) -> None:
        """Take over the problems that another process has found in a slice.

        Raises:
            CatalogError: the share of bad rows exceeds `max_bad_rows`.
        """
        for problem in problems:
            self.report.add(**problem)
        self._check_share()

    def items(
        self,
        known: Mapping[str, str] | None = None,
        batches: Iterable[pa.RecordBatch] | None = None,
        shrink: Callable[[Image], Image] | None = None,
        rows: NDArray[np.int64] | None = None,
    ) -> Iterator[Item]:
        """Yield usable items in file order, pictures decoded ahead in threads; fills `self.report`.

        Args:
            known: item id -> content hash from an earlier reading; an item that has not changed
                comes without its picture, which saves the decoding. One whose picture cannot be
                reached now keeps its hash, and counts as unchanged.
            batches: rows of this catalogue, as `CatalogSlice.batches` gives them; None: all rows.
            shrink: makes a picture as small as it is needed, as `ItemEncoder.shrink`.
            rows: numbers of the rows to look at, from 1; None: all.

        Raises:
            CatalogError: as soon as the share of bad rows is sure to exceed `max_bad_rows`, or that of
                pictures that cannot be reached `max_unreachable`.
        """
        self.report = CatalogReport(self.rows)
        looked_at = self._unique_rows(batches, rows)
        with_pictures = self.image_column is not None
        for row, picture in pictures_ahead(looked_at, self.settings, known or {}, shrink, with_pictures):
            yield self._item(row, picture, shrunk=shrink is not None)
        self._check_share()

    def _item(self, row: Row, picture: Picture, shrunk: bool) -> Item:
        if self.text_columns and not row.fields and "unusable_text" not in row.reported:
            self.report.add(row.number, row.item_id, "missing_text", "every text column is empty")
        if picture.problem is not None and "unusable_image" not in row.reported:
            self.report.add(row.number, row.item_id, picture.problem.reason, picture.problem.detail)
        self._check_share()
        return Item(row.number, row.item_id, row.fields, picture.image, picture.content_hash, shrunk)

    def _unique_rows(
        self, batches: Iterable[pa.RecordBatch] | None, rows: NDArray[np.int64] | None
    ) -> Iterator[Row]:
        """Rows whose id is present and in no earlier row."""
        if batches is None:
            blocks = self._table.blocks(self._columns.rules, BATCH_ROWS)
            batches = self._columns.batches(blocks, 1)
        if rows is not None:
            wanted = np.zeros(self.rows + 1, np.bool_)
            wanted[rows] = True
            batches = (batch.filter(pa.array(wanted[batch["row"].to_numpy()])) for batch in batches)
        for values in chain.from_iterable(batch.to_pylist() for batch in batches):
            number, item_id = values["row"], values["item_id"]
            problems = [(problem["reason"], problem["detail"]) for problem in values["problems"]]
            reasons = {reason for reason, _ in problems}
            for problem in problems:
                self.report.add(number, item_id, *problem)
            if reasons & {"damaged_row", "unusable_id"}:
                continue
            if not item_id:
                self.report.add(number, None, "missing_id", f"column {self._columns.id} is empty")
            elif (first := self._first_rows.get(item_id, number)) != number:
                self.report.add(number, item_id, "duplicate_id", f"row {first} has this id and is kept")
            else:
                texts = zip(self.text_columns, values["texts"], strict=True)
                fields = {name: text for name, text in texts if text}
                image = values["picture"] if values["picture"] is not None else values["picture_path"]
                yield Row(number, item_id, fields, image, frozenset(reasons))

    def _scan_ids(self) -> tuple[int, set[int]]:
        hashes = np.sort(np.fromiter(map(_id_hash, self.ids_of_rows(guessed=False)), np.uint64))
        return len(hashes), set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())

    def _find_first_rows(self, repeated: set[int]) -> dict[str, int]:
        """Id -> its first row, for the ids whose hash occurs more than once."""
        first: dict[str, int] = {}
        if repeated:
            for number, item_id in enumerate(self.ids_of_rows(guessed=False), start=1):
                if _id_hash(item_id) in repeated:
                    first.setdefault(item_id, number)
        return first

    def _check_share(self) -> None:
        report, settings = self.report, self.settings
        if report.unreachable > settings.max_unreachable * self.rows:
            option, limit, advice = "--max-unreachable", settings.max_unreachable, "run again later"
        elif report.bad_rows - report.unreachable > settings.max_bad_rows * self.rows:
            option, limit, advice = "--max-bad-rows", settings.max_bad_rows, "repair rows"
        else:
            return
        examples = "\n".join(
            f"  row {problem['row']} ({problem['item_id']}): {problem['reason']}: {problem['detail']}"
            for problem in report.problems[:5]
        )
        raise CatalogError(
            f"{self._table.name}: {report}. That is above {option} {limit:g}; {advice} or raise the limit. "
            f"The first ones:\n{examples}"
        )


def _id_hash(item_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(item_id.encode(), digest_size=8).digest(), "little")
