"""Item vectors in one file: a memory-mapped Arrow IPC file for requests too large for Redis.

A snapshot holds the vectors of one version. It is written whole or not at all, never changed, and
its pages are shared by all processes of a machine. Rows are sorted by a 64-bit hash of the item id,
so that many ids are found by one binary search. This is the only module of the package that needs
pyarrow.

    schema     item_id, item_hash: uint64, text_embedding, image_embedding: fixed_size_list<float32>[d],
               event_timestamp: timestamp[us]; a vector or a time that is not there is null
    metadata   sda_snapshot: {"format": 1, "version": ..., "dim": d, "items": n}
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sda_features.artifacts import atomic_file
from sda_features.errors import FeatureMismatchError, FeatureStoreError
from sda_features.serving.codec import Mask, Matrix
from sda_features.serving.layout import IMAGE, TEXT
from sda_features.serving.reading import Embeddings, ItemId, Times, forget_older

FORMAT = 1
METADATA = b"sda_snapshot"
ITEM_ID, ITEM_HASH, EVENT_TIMESTAMP = "item_id", "item_hash", "event_timestamp"


def write_snapshot(
    path: Path | str,
    item_ids: Sequence[ItemId],
    *,
    version: str,
    text: Matrix,
    image: Matrix,
    text_found: Mask | None = None,
    image_found: Mask | None = None,
    event_times: Times | None = None,
) -> None:
    """Write a snapshot in one step; a reader that has the old file open keeps reading it.

    Args:
        path: the file.
        item_ids: n distinct ids; integers are kept as their digits.
        version: adapter version of the vectors.
        text: float32 [n, d].
        image: float32 [n, d].
        text_found: bool [n]; None: all are there.
        image_found: bool [n]; None: all are there.
        event_times: datetime64 [n] in UTC; NaT or None: unknown.

    Raises:
        FeatureStoreError: ids repeat.
        FeatureMismatchError: the arrays differ in shape.
    """
    names = [str(item_id) for item_id in item_ids]
    count = len(names)
    if repeated := [name for name, times in Counter(names).items() if times > 1]:
        raise FeatureStoreError(f"Expected one row an item; {repeated[0]!r} has several.")
    if not text.shape == image.shape == (count, *text.shape[1:2]):
        raise FeatureMismatchError(
            f"Expected vectors [{count}, d] of {count} items, got text {text.shape} and image {image.shape}."
        )
    if event_times is None:
        event_times = np.full(count, "NaT", "datetime64[us]")
    hashes = _hashes(names)
    order = np.argsort(hashes, kind="stable")
    columns = {
        ITEM_ID: pa.array([names[row] for row in order], pa.string()),
        ITEM_HASH: pa.array(hashes[order]),
        TEXT: _vectors(text, text_found, order),
        IMAGE: _vectors(image, image_found, order),
        EVENT_TIMESTAMP: pa.array(event_times[order].astype("datetime64[us]")),
    }
    described = {"format": FORMAT, "version": version, "dim": text.shape[1], "items": count}
    batch = pa.record_batch(columns).replace_schema_metadata({METADATA: json.dumps(described)})
    with atomic_file(Path(path)) as temporary, pa.ipc.new_file(str(temporary), batch.schema) as writer:
        writer.write_batch(batch)  # one batch, so that a matrix is one block


class SnapshotClient:
    """Reads item vectors from a snapshot; results are those of `EmbeddingClient`. Safe to share between threads.

    Args:
        path: file that `write_snapshot` made. It is mapped, not loaded; a file that replaces it
            later is seen by a client made later.
        dim: the dimension that vectors must have.
        version: the adapter version that they must have.
        max_age: items whose vectors are older count as not found.

    Raises:
        FeatureStoreError: there is no such file, or it is no snapshot.
        FeatureMismatchError: it has another dimension or version.

    Example:
        >>> client = SnapshotClient("vectors.arrow", dim=256)
        >>> scores = client.get(candidates).text @ query
    """

    def __init__(
        self,
        path: Path | str,
        *,
        dim: int | None = None,
        version: str | None = None,
        max_age: timedelta | None = None,
    ) -> None:
        self.path = Path(path)
        try:
            self._file = pa.memory_map(str(path))
            batch = pa.ipc.open_file(self._file).get_batch(0)
            described = json.loads(batch.schema.metadata[METADATA])
        except FileNotFoundError:
            raise FeatureStoreError(f"Expected a snapshot; there is no {path}.") from None
        except (pa.ArrowInvalid, OSError, TypeError, KeyError, ValueError) as error:
            raise FeatureStoreError(f"{path} is no snapshot ({type(error).__name__}).") from None
        if described["format"] != FORMAT:
            raise FeatureStoreError(
                f"Expected snapshot format {FORMAT} in {path}, got {described['format']}."
            )
        self.version: str = described["version"]
        self.dim: int = described["dim"]
        self.max_age = max_age
        if dim is not None and dim != self.dim:
            raise FeatureMismatchError(f"{path} has vectors of dimension {self.dim}, expected {dim}.")
        self._expect(version)
        self._ids = batch[ITEM_ID]
        self._hashes = batch[ITEM_HASH].to_numpy()
        self._text, self._text_found = _matrix(batch[TEXT], self.dim)
        self._image, self._image_found = _matrix(batch[IMAGE], self.dim)
        self._times = batch[EVENT_TIMESTAMP].to_numpy(zero_copy_only=False)

    def get(self, item_ids: Sequence[ItemId], version: str | None = None) -> Embeddings:
        """Vectors of items, in the order of the request; an unknown id has False masks and zero rows.

        Raises:
            FeatureMismatchError: the snapshot does not hold `version`.
        """
        self._expect(version)
        ids = tuple(item_ids)
        rows = self._rows(ids)
        known = rows >= 0
        times = np.full(len(ids), np.datetime64("NaT", "us"))
        times[known] = self._times[rows[known]]
        text, text_found = _gather(self._text, self._text_found, rows)
        image, image_found = _gather(self._image, self._image_found, rows)
        versions = tuple([self.version if there else None for there in known.tolist()])
        found = Embeddings(ids, text, text_found, image, image_found, versions, times)
        forget_older(found, self.max_age)
        return found

    def __len__(self) -> int:
        return len(self._hashes)

    def close(self) -> None:
        """Close the file. What was read stays valid; the pages are let go with the client."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _expect(self, version: str | None) -> None:
        if version is not None and version != self.version:
            raise FeatureMismatchError(
                f"{self.path} holds adapter version {self.version!r}, expected {version!r}. Write a snapshot of it."
            )

    def _rows(self, ids: tuple[ItemId, ...]) -> npt.NDArray[np.int64]:
        """Row of each id, [n]; -1 where it is not there."""
        names = [str(item_id) for item_id in ids]
        wanted = _hashes(names)
        rows = np.searchsorted(self._hashes, wanted)
        inside = rows < len(self)
        inside[inside] = self._hashes[rows[inside]] == wanted[inside]
        rows[~inside] = -1
        there = np.flatnonzero(inside)
        stored = self._ids.take(pa.array(rows[there])).to_pylist()
        for position, name in zip(there.tolist(), stored, strict=True):
            if name != names[position]:
                rows[position] = self._row_of_a_shared_hash(rows[position], names[position])
        return rows

    def _row_of_a_shared_hash(self, row: int, name: str) -> int:
        """Row of an id whose hash some other id has, too; -1 if it is not there."""
        last = np.searchsorted(self._hashes, self._hashes[row], side="right")
        return next((other for other in range(row, last) if self._ids[other].as_py() == name), -1)


def _hashes(names: Sequence[str]) -> npt.NDArray[np.uint64]:
    """64 bits of each id."""
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
    return np.frombuffer(b"".join(digests), "<u8")


def _gather(matrix: Matrix, found: Mask, rows: npt.NDArray[np.int64]) -> tuple[Matrix, Mask]:
    """The rows of a matrix as a new one, and which of them are there; zero where not."""
    there = rows >= 0
    there[there] = found[rows[there]]
    if there.all():
        return matrix[rows], there
    gathered = np.zeros((len(rows), matrix.shape[1]), np.float32)
    gathered[there] = matrix[rows[there]]
    return gathered, there


def _vectors(matrix: Matrix, found: Mask | None, order: npt.NDArray[np.int64]) -> pa.Array:
    rows = pa.array(np.ascontiguousarray(matrix[order], np.float32).reshape(-1))
    mask = None if found is None else pa.array(~found[order])
    return pa.FixedSizeListArray.from_arrays(rows, matrix.shape[1], mask=mask)


def _matrix(column: Any, dim: int) -> tuple[Matrix, Mask]:
    """The matrix [n, d] of a column without a copy, and which rows are there."""
    return column.values.to_numpy().reshape(-1, dim), column.is_valid().to_numpy(zero_copy_only=False)
