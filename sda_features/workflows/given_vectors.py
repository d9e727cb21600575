"""`materialize --vectors`: items whose vectors an encoder of the user's own has made.

The table has a column of ids and up to two columns of vectors (lists of numbers of one length). It
takes the place of catalogue and encoder: the content hash of a row is that of its vectors, so runs
are incremental, and items that are gone from the table are deleted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pa_dataset

from sda_features.artifacts import sha256_files
from sda_features.catalog.rows import CatalogReport
from sda_features.errors import CatalogError
from sda_features.lvlm.encoded_items import EncodedItems
from sda_features.workflows.engines import Progress

BATCH_ROWS = 8_192
FILE_BYTES = 32 << 20  # of vectors that are written together; compact.py calls smaller files small
GIVEN = "vectors:"  # begins the content hash of vectors that were given, which says nothing of the catalogue


@dataclass(frozen=True)
class VectorTable:
    """A parquet or Arrow file, or a folder of them, with ids and vectors; an `engines.Encoding` of these.

    Attributes:
        text, image: names of the columns of vectors; None: there are none.
        version: adapter version under which the vectors are stored.
    """

    path: Path
    id_column: str
    text: str | None
    image: str | None
    version: str

    @cached_property
    def report(self) -> CatalogReport:
        """Bad rows: there are none, a row that cannot be used is an error."""
        return CatalogReport(self.rows)

    @cached_property
    def dataset(self) -> pa_dataset.Dataset:
        """The table.

        Raises:
            CatalogError: it cannot be read, or lacks a column.
        """
        kind = "ipc" if self.path.suffix in (".arrow", ".feather") else "parquet"
        try:
            found = pa_dataset.dataset(str(self.path), format=kind)
        except (OSError, pa.ArrowException) as problem:
            raise CatalogError(f"The vectors in {self.path} cannot be read as {kind}: {problem}") from None
        wanted = [self.id_column, *filter(None, [self.text, self.image])]
        if absent := [name for name in wanted if name not in found.schema.names]:
            raise CatalogError(
                f"Expected the columns {', '.join(wanted)} in {self.path}, there is no {', '.join(absent)}. It has "
                f"{', '.join(found.schema.names)}; see --id-column, --text-vectors and --image-vectors."
            )
        return found

    @property
    def rows(self) -> int:
        """Rows of the table."""
        return int(self.dataset.count_rows())

    def ids(self) -> Iterator[str]:
        """The ids."""
        for batch in self._batches(self.id_column):
            yield from batch.column(0).cast(pa.string()).to_pylist()

    def shards(
        self, catalog: object, known: Mapping[str, str], progress: Progress, stage: object = None
    ) -> Iterator[EncodedItems]:
        """Vectors that are not `known` by their hash, some megabytes at a time.

        Raises:
            CatalogError: an id is missing, or a vector has another length than the others.
        """
        waiting: list[EncodedItems] = []
        for batch in self._batches(self.id_column, *filter(None, [self.text, self.image])):
            changed = self._changed(batch, known, progress)
            if changed.item_ids:
                waiting.append(changed)
            if sum(items.text.nbytes + items.image.nbytes for items in waiting) >= FILE_BYTES:
                shard = _together(waiting)
                yield shard
                del shard  # not in memory beside the next one
        if waiting:
            yield _together(waiting)

    def _batches(self, *columns: str) -> Iterator[pa.RecordBatch]:
        from sda_features.offline.latest import file_batches

        for piece in self.dataset.get_fragments():
            if isinstance(piece, pa_dataset.ParquetFileFragment):
                yield from file_batches(piece, self.dataset.schema, list(columns), BATCH_ROWS)
            else:
                yield from piece.to_batches(columns=list(columns), batch_size=BATCH_ROWS, batch_readahead=1)

    def _changed(self, batch: pa.RecordBatch, known: Mapping[str, str], progress: Progress) -> EncodedItems:
        ids = batch[self.id_column].cast(pa.string())
        if ids.null_count:
            raise CatalogError(f"Expected an id in every row of {self.path}; some are null.")
        names = ids.to_pylist()
        text, text_found = self._matrix(batch, self.text)
        image, image_found = self._matrix(batch, self.image)
        pieces = (text, text_found[:, None], image, image_found[:, None])
        raw = [np.ascontiguousarray(piece).view(np.uint8).reshape(len(names), -1) for piece in pieces]
        joined = np.concatenate(raw, axis=1)
        hashes = [GIVEN + hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest() for row in joined]
        new = np.array(
            [known.get(name) != content for name, content in zip(names, hashes, strict=True)], np.bool_
        )
        progress.skipped(int(len(new) - new.sum()))
        progress.made(int(text_found[new].sum() + image_found[new].sum()))
        (places,) = new.nonzero()
        return EncodedItems(
            [names[place] for place in places],
            [hashes[place] for place in places],
            text[new],
            text_found[new],
            image[new],
            image_found[new],
        )

    def _matrix(self, batch: pa.RecordBatch, name: str | None) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of a column, float32 [n, d], and which there are [n]; d is 0 without any."""
        if name is None:
            return np.zeros((len(batch), 0), np.float32), np.zeros(len(batch), np.bool_)
        column = batch[name]
        kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        if not any(kind(column.type) for kind in kinds):
            raise CatalogError(f"Expected lists of numbers in {name} of {self.path}, got {column.type}.")
        try:
            column = column.cast(pa.list_(pa.float32()))
        except pa.ArrowException as problem:
            raise CatalogError(f"{name} of {self.path} holds no lists of numbers: {problem}") from None
        lengths = pc.unique(pc.list_value_length(column).drop_null()).to_pylist()
        if len(lengths) > 1 or lengths == [0]:
            raise CatalogError(
                f"Expected vectors of one length in {name} of {self.path}, got {sorted(lengths)}."
            )
        found = column.is_valid().to_numpy(zero_copy_only=False)
        matrix = np.zeros((len(batch), *(lengths or [0])), np.float32)
        if lengths:
            matrix[found] = column.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, *lengths)
        return matrix, found


def version_of(path: Path) -> str:
    """A version for vectors that were given none: a hash of the file, or of the folder's files."""
    return sha256_files(filter(Path.is_file, sorted(path.rglob("*")) if path.is_dir() else [path]))[:12]


def _together(shards: list[EncodedItems]) -> EncodedItems:
    """One shard of several, which are let go meanwhile."""
    ids = [item_id for items in shards for item_id in items.item_ids]
    hashes = [content for items in shards for content in items.content_hashes]
    found = [
        np.concatenate([getattr(items, name) for items in shards]) for name in ("text_found", "image_found")
    ]
    texts, images = [items.text for items in shards], [items.image for items in shards]
    shards.clear()
    return EncodedItems(ids, hashes, _stacked(texts), found[0], _stacked(images), found[1])


def _stacked(pieces: list[np.ndarray]) -> np.ndarray:
    width = max(piece.shape[1] for piece in pieces)
    stacked = np.zeros((sum(map(len, pieces)), width), np.float32)
    end = len(stacked)
    while pieces:
        piece = pieces.pop()  # not in memory beside all of its copies
        end -= len(piece)
        stacked[end : end + len(piece), : piece.shape[1]] = piece
    return stacked
