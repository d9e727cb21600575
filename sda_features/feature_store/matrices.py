"""Reading item vectors back through the offline store that a Feast repo names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pa_dataset

from sda_features.errors import FeatureMismatchError, FeatureStoreError
from sda_features.feature_store.repo import FeatureSet
from sda_features.feature_store.versions import open_version
from sda_features.offline.latest import latest_batches
from sda_features.offline.schema import ID_TYPES, column_dim, matrix_of, vector_column
from sda_features.offline.table import read_table
from sda_features.serving.codec import Mask, Matrix
from sda_features.serving.layout import IMAGE, TEXT, VERSION, parse_item_id

Gathered: TypeAlias = tuple[tuple[Matrix, Mask], tuple[Matrix, Mask], tuple[str, ...]]

END_OF_TIME = datetime(2200, 1, 1, tzinfo=UTC)  # pandas counts nanoseconds and ends in 2262


@dataclass(frozen=True)
class ItemVectors:
    """Vectors of n items, row i for item i of the request.

    Attributes:
        item_ids: the n ids.
        text: float32 [n, d]; zero where not found.
        text_found: bool [n].
        image: float32 [n, d]; zero where not found.
        image_found: bool [n].
        versions: the adapter versions of the found items, sorted; more than one means that the
            vectors do not lie in one space.
    """

    item_ids: tuple[str, ...]
    text: Matrix
    text_found: Mask
    image: Matrix
    image_found: Mask
    versions: tuple[str, ...]


def load_vectors(
    repo_path: Path | str,
    feature_set: str,
    item_ids: Sequence[str],
    *,
    version: str | None = None,
    end: datetime | None = None,
    folder: Path | None = None,
) -> ItemVectors:
    """The newest vectors of items, read through the offline store that the repo names.

    A table of our own is read batch by batch; another source through Feast's
    `pull_latest_from_table_or_query`, which every offline store implements and `materialize` itself
    uses: the same rows that are served. `get_historical_features` would join
    each vector to a row of an entity frame as Python objects, at three times the cost
    (docs/feast.md), and drop items whose rows are newer than the frame.

    Args:
        repo_path: an applied Feast repo.
        feature_set: name of the feature set.
        item_ids: n ids; they may repeat. An unknown id has masks of False and rows of zeros.
        version: adapter version whose slot is read; None: the live one, see `versions.open_version`.
        end: rows after this instant are not seen; None: all are.
        folder: where the matrices are made as memory-mapped files text.npy and image.npy, for more vectors
            than memory holds; ids are distinct then. None: in memory.

    Raises:
        FeatureStoreError: the repo is not applied, lacks the view, or holds no rows.
        FeatureMismatchError: stored vectors differ in dimension, or an id is not of the entity's type.
    """
    opened = open_version(repo_path, feature_set, version)
    wanted = [parse_item_id(item_id, opened.id_type) for item_id in item_ids]
    rows = {item_id: row for row, item_id in enumerate(dict.fromkeys(wanted))}
    if folder is not None and len(rows) < len(wanted):
        raise FeatureStoreError("Expected distinct ids for matrices in files.")
    text, image, versions = read_matrices(opened, rows, end=end, folder=folder)
    if len(rows) < len(wanted):  # ids that repeat share one row until here
        order = np.array([rows[item_id] for item_id in wanted])
        text, image = ((matrix[order], found[order]) for matrix, found in (text, image))
    return ItemVectors(tuple(item_ids), *text, *image, versions)


def read_matrices(
    opened: FeatureSet,
    rows: Mapping[str | int, int],
    *,
    end: datetime | None = None,
    folder: Path | None = None,
) -> Gathered:
    """What `load_vectors` returns for the items of a slot that `rows` names, each in its row.

    Returns:
        Text and image vectors, float32 [n, d] each with found [n]; and their versions.
    """
    columns = opened.source_columns(opened.join_key, TEXT, IMAGE, VERSION)
    end = end or END_OF_TIME

    def read(dataset: pa_dataset.FileSystemDataset | None) -> Gathered:
        batches: Iterable[pa.RecordBatch] = ()
        if dataset is not None:
            timestamp = opened.view.batch_source.timestamp_field
            batches = latest_batches(dataset, keys=columns[:1], timestamp=timestamp, columns=columns, end=end)
        return _gather(opened, batches, rows, folder)

    if opened.has_folder:
        return read_table(opened.folder, read)
    return _gather(opened, pull_latest(opened, columns, end).select(columns).to_batches(), rows, folder)


def pull_latest(opened: FeatureSet, columns: Sequence[str], end: datetime) -> pa.Table:
    """See `FeatureSet.pull_latest`.

    Raises:
        FeatureStoreError: the source names no existing file.
    """
    try:
        return opened.pull_latest(columns, end)
    except FileNotFoundError:
        raise FeatureStoreError(
            f"The offline store has no rows of {opened.view.name}: {opened.view.batch_source.name} names no existing "
            "file. Write them with `sda-features materialize`."
        ) from None


def _gather(
    opened: FeatureSet,
    batches: Iterable[pa.RecordBatch],
    rows: Mapping[str | int, int],
    folder: Path | None,
) -> Gathered:
    """What `read_matrices` returns, of batches with ids, text and image vectors and versions in this order."""
    matrices = {TEXT: np.zeros((len(rows), 0), np.float32), IMAGE: np.zeros((len(rows), 0), np.float32)}
    found = {name: np.zeros(len(rows), np.bool_) for name in matrices}
    dims: set[int] = set()
    versions: set[str] = set()
    count = 0
    for batch in batches:
        count += len(batch)
        ids, text, image, version = pa.Table.from_batches([batch]).columns
        table = pa.table({TEXT: _vectors(text), IMAGE: _vectors(image)})
        dims |= {dim for name in matrices if (dim := column_dim(table, name)) is not None}
        if len(dims) > 1:
            raise FeatureMismatchError(
                f"{opened.view.name} holds vectors of several dimensions: {sorted(dims)}."
            )
        items = ids.cast(ID_TYPES[opened.id_type]).to_pylist()
        target = np.fromiter((rows.get(item_id, -1) for item_id in items), np.int64, len(batch))
        named = version.cast(pa.string()).filter(pa.array(target >= 0))
        versions.update(named.unique().drop_null().to_pylist())
        for name, matrix in matrices.items() if dims else ():
            if not matrix.shape[1]:
                matrices[name] = matrix = _zeros(name, (len(rows), *dims), folder)
            place = target[table[name].is_valid().to_numpy()]
            wanted = place >= 0
            block = table[name].chunk(0).flatten().to_numpy().reshape(-1, *dims)
            matrix[place[wanted]] = block if wanted.all() else block[wanted]
            found[name][place[wanted]] = True
    if not count:
        raise FeatureStoreError(
            f"The offline store has no rows of {opened.view.name}. Write them with `sda-features materialize`."
        )
    return (matrices[TEXT], found[TEXT]), (matrices[IMAGE], found[IMAGE]), tuple(sorted(versions))


def _zeros(name: str, shape: tuple[int, ...], folder: Path | None) -> Matrix:
    if folder is None or not all(shape):  # no file of nothing can be mapped
        return np.zeros(shape, np.float32)
    return np.lib.format.open_memmap(
        folder / f"{name.removesuffix('_embedding')}.npy", "w+", np.float32, shape
    )


def _vectors(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of vectors as list<float32>; a Bytes feature holds packed ones (codec.pack_vectors)."""
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return pa.chunked_array([vector_column(*matrix_of(column))])
    return column.cast(pa.list_(pa.float32()))
