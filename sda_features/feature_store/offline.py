"""Reading item vectors back through the offline store that a Feast repo names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sda_features.errors import FeatureMismatchError, FeatureStoreError
from sda_features.feature_store.parts import read_parts
from sda_features.feature_store.repo import FeatureSet, quiet_feast
from sda_features.feature_store.schema import EVENT_TIMESTAMP, ID_TYPES, ITEM_ID, column_dim, vector_column
from sda_features.feature_store.versions import open_version
from sda_features.serving.codec import Mask, Matrix, unpack_vectors
from sda_features.serving.layout import IMAGE, TEXT, VERSION, parse_item_id

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
) -> ItemVectors:
    """The newest vectors of items, read through the offline store that the repo names.

    This is Feast's `pull_latest_from_table_or_query`, which every offline store implements and
    `materialize` itself uses: the same rows that are served. `get_historical_features` would join
    each vector to a row of an entity frame as Python objects, at three times the cost
    (docs/feast.md), and drop items whose rows are newer than the frame.

    Args:
        repo_path: an applied Feast repo.
        feature_set: name of the feature set.
        item_ids: n ids; they may repeat. An unknown id has masks of False and rows of zeros.
        version: adapter version whose slot is read; None: the live one, see `versions.open_version`.
        end: rows after this instant are not seen; None: all are.

    Raises:
        FeatureStoreError: the repo is not applied, lacks the view, or holds no rows.
        FeatureMismatchError: stored vectors differ in dimension, or an id is not of the entity's type.
    """
    opened = open_version(repo_path, feature_set, version)
    rows = pull_latest(opened, end=end or END_OF_TIME)
    if not len(rows):
        raise FeatureStoreError(
            f"The offline store has no rows of {opened.view.name}. Write them with `sda-features materialize`."
        )
    wanted = [parse_item_id(item_id, opened.id_type) for item_id in item_ids]
    positions = pc.index_in(pa.array(wanted, rows[ITEM_ID].type), value_set=rows[ITEM_ID])
    known = positions.is_valid().to_numpy(zero_copy_only=False)
    index = positions.fill_null(0).to_numpy()
    dims = {dim for dim in (column_dim(rows, TEXT), column_dim(rows, IMAGE)) if dim is not None}
    if len(dims) > 1:
        raise FeatureMismatchError(f"{opened.view.name} holds vectors of several dimensions: {sorted(dims)}.")
    dim = dims.pop() if dims else 0
    text, text_found = _gather(rows[TEXT], index, known, dim)
    image, image_found = _gather(rows[IMAGE], index, known, dim)
    versions = pc.unique(rows[VERSION].take(pa.array(np.unique(index[known])))).drop_null().to_pylist()
    return ItemVectors(tuple(item_ids), text, text_found, image, image_found, tuple(sorted(versions)))


def pull_latest(opened: FeatureSet, *, end: datetime) -> pa.Table:
    """The newest row of each item up to `end`, from the offline store that the repo names.

    Returns:
        Columns item_id (string or integer), text_embedding and image_embedding (list<float32>),
        adapter_version and event_timestamp.
    """
    source = opened.view.batch_source
    source_names = {field: column for column, field in source.field_mapping.items()}
    names = {name: source_names.get(name, name) for name in (opened.join_key, TEXT, IMAGE, VERSION)}
    with quiet_feast():
        from feast.infra.offline_stores.offline_utils import get_offline_store_from_config

        offline_store = get_offline_store_from_config(opened.store.config.offline_store)

        def pull() -> pa.Table:
            job = offline_store.pull_latest_from_table_or_query(
                config=opened.store.config,
                data_source=source,
                join_key_columns=[names[opened.join_key]],
                feature_name_columns=[names[TEXT], names[IMAGE], names[VERSION]],
                timestamp_field=source.timestamp_field,
                created_timestamp_column=source.created_timestamp_column or None,
                start_date=datetime(1970, 1, 1, tzinfo=UTC),
                end_date=end,
            )
            return job.to_arrow()

        try:
            # Feast lists and reads a folder itself, so this side only looks whether parts vanished meanwhile.
            table = read_parts(opened.folder, lambda _: pull()) if opened.is_local else pull()
        except FileNotFoundError:
            raise FeatureStoreError(
                f"The offline store has no rows of {opened.view.name}: {source.name} names no existing file. "
                "Write them with `sda-features materialize`."
            ) from None
    return pa.table(
        {
            ITEM_ID: table[names[opened.join_key]].cast(ID_TYPES[opened.id_type]),
            TEXT: _vectors(table[names[TEXT]]),
            IMAGE: _vectors(table[names[IMAGE]]),
            VERSION: table[names[VERSION]].cast(pa.string()),
            EVENT_TIMESTAMP: table[source.timestamp_field].cast(pa.timestamp("us", tz="UTC")),
        }
    )


def _vectors(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of vectors as list<float32>; a Bytes feature holds packed ones (codec.pack_vectors)."""
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        found = column.is_valid().to_numpy()
        unpacked = unpack_vectors(column.drop_null().to_pylist())
        matrix = np.zeros((len(column), unpacked.shape[1]), np.float32)
        matrix[found] = unpacked
        return pa.chunked_array([vector_column(matrix, found)])
    return column.cast(pa.list_(pa.float32()))


def _gather(column: pa.ChunkedArray, index: np.ndarray, known: Mask, dim: int) -> tuple[Matrix, Mask]:
    """Rows `index` of a list column as [n, d], and which of them are known and not null [n]."""
    valid = column.is_valid().to_numpy()
    found = known & valid[index]
    matrix = np.zeros((len(index), dim), np.float32)
    row_of = (np.cumsum(valid) - 1)[index]  # list row -> row of the dense blocks below
    start = 0
    for chunk in column.chunks:  # a column past 2**31 numbers has several
        block = chunk.flatten().to_numpy().reshape(-1, dim) if dim else np.zeros((0, 0), np.float32)
        here = found & (row_of >= start) & (row_of < start + len(block))
        if here.all() and len(here):
            np.take(block, row_of - start, axis=0, out=matrix, mode="clip")  # without a copy between
        else:
            matrix[here] = block[row_of[here] - start]
        start += len(block)
    return matrix, found
