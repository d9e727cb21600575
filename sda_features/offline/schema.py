"""The shape of an offline row: one item of one feature set. The one place that knows it.

| column | type | meaning |
|---|---|---|
| item_id | string | id of the item, never null |
| text_embedding | list<float32> or binary, nullable | vector of the text; null without usable text |
| image_embedding | list<float32> or binary, nullable | vector of the picture; null without a usable picture |
| adapter_version | string | which checkpoint made the vectors |
| content_hash | string | hash of the catalogue row, to skip what has not changed; stays offline |
| event_timestamp | timestamp[us, UTC] | when the vectors were made; later than for any older row of the item |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sda_features.errors import FeatureMismatchError, FeatureStoreError
from sda_features.serving.codec import Mask, Matrix, StoreDtype, pack_vectors, unpack_vectors
from sda_features.serving.layout import IMAGE, TEXT, VERSION, IdType, parse_item_id

ITEM_ID = "item_id"
CONTENT_HASH = "content_hash"
EVENT_TIMESTAMP = "event_timestamp"
STORE_DTYPE_TAG = "store_dtype"  # of a feature view

ID_TYPES = {"string": pa.string(), "int32": pa.int32(), "int64": pa.int64()}  # of a stored item_id


def vectors_schema(vector: pa.DataType) -> pa.Schema:
    """Columns of an offline row whose vectors have the Arrow type `vector`."""
    return pa.schema(
        [
            pa.field(ITEM_ID, pa.string(), nullable=False),
            pa.field(TEXT, vector),
            pa.field(IMAGE, vector),
            pa.field(VERSION, pa.string(), nullable=False),
            pa.field(CONTENT_HASH, pa.string(), nullable=False),
            pa.field(EVENT_TIMESTAMP, pa.timestamp("us", tz="UTC"), nullable=False),
        ]
    )


SCHEMA = vectors_schema(pa.list_(pa.float32()))
PACKED_SCHEMA = vectors_schema(pa.binary())  # smaller numbers, see serving/codec.py


def vectors_table(
    item_ids: Sequence[str],
    *,
    text: Matrix,
    text_found: Mask,
    image: Matrix,
    image_found: Mask,
    adapter_version: str,
    content_hashes: Sequence[str],
    event_timestamp: datetime,
    store_dtype: StoreDtype = "float32",
) -> pa.Table:
    """Rows of n items that one checkpoint encoded in one run.

    Args:
        item_ids: n ids.
        text: float32 [n, d].
        text_found: bool [n]; False makes the vector null.
        image: float32 [n, d].
        image_found: bool [n].
        adapter_version: version of the checkpoint.
        content_hashes: n hashes of the catalogue rows.
        event_timestamp: when the run started, with a time zone.
        store_dtype: how the numbers of a vector are stored.

    Returns:
        A table of `SCHEMA`, or of `PACKED_SCHEMA` for a smaller dtype.
    """
    count = len(item_ids)
    columns = [
        pa.array(item_ids, pa.string()),
        vector_column(text, text_found, store_dtype),
        vector_column(image, image_found, store_dtype),
        pa.repeat(adapter_version, count),
        pa.array(content_hashes, pa.string()),
        pa.repeat(pa.scalar(event_timestamp.astimezone(UTC), SCHEMA.field(EVENT_TIMESTAMP).type), count),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA if store_dtype == "float32" else PACKED_SCHEMA)


def check_table(table: pa.Table, *, newest: Callable[[], datetime | None] = lambda: None) -> int | None:
    """Check every row of a table against `SCHEMA`, or `PACKED_SCHEMA`.

    Args:
        table: rows to write.
        newest: gives the latest timestamp that is stored already. After the clock has been set back
            it lies in the future, and newer rows have to as well.

    Returns:
        The dimension d that all vectors have; None if all are null.

    Raises:
        FeatureStoreError: columns differ, an id is missing, empty or repeated, a version, hash or
            timestamp is missing, or a timestamp lies in the future.
        FeatureMismatchError: vectors differ in dimension, or hold a null, a NaN or an infinity.
    """
    if not (table.schema.equals(SCHEMA) or table.schema.equals(PACKED_SCHEMA)):
        got = ", ".join(f"{field.name}: {field.type}" for field in table.schema)
        want = ", ".join(f"{field.name}: {field.type}" for field in SCHEMA)
        raise FeatureStoreError(f"Expected the columns {want} (see feature_store/schema.py); got {got}.")
    for name in (ITEM_ID, VERSION, CONTENT_HASH, EVENT_TIMESTAMP):
        if table[name].null_count:
            raise FeatureStoreError(
                f"Expected a value of {name} in every row; {table[name].null_count} are null."
            )
    ids = table[ITEM_ID]
    if pc.any(pc.equal(ids, "")).as_py():
        raise FeatureStoreError("Expected ids of items; one is the empty string.")
    if pc.count_distinct(ids).as_py() != len(ids):
        repeated = next(count["values"] for count in ids.value_counts().to_pylist() if count["counts"] > 1)
        raise FeatureStoreError(
            f"Expected one row an item; {repeated!r} has several. Deduplicate the catalogue."
        )
    latest, now = pc.max(table[EVENT_TIMESTAMP]).as_py(), datetime.now(UTC)
    if latest is not None and latest > now:
        stored = newest()
        if stored is None or latest > stored + timedelta(microseconds=1):
            raise FeatureStoreError(
                f"Expected event timestamps up to now ({now.isoformat()}), got {latest.isoformat()}: "
                "Feast leaves rows of the future out. Stamp a run with the time at which it starts."
            )
    dims = {name: column_dim(table, name) for name in (TEXT, IMAGE)}
    known = {dim for dim in dims.values() if dim is not None}
    if len(known) > 1:
        raise FeatureMismatchError(f"Expected text and image vectors of one dimension, got {dims}.")
    return known.pop() if known else None


def typed_ids(table: pa.Table, id_type: IdType) -> pa.Array:
    """The ids of rows in the type that they have in Feast.

    Raises:
        FeatureMismatchError: an id is not of `id_type`.
    """
    return pa.array(
        [parse_item_id(item_id, id_type) for item_id in table[ITEM_ID].to_pylist()], ID_TYPES[id_type]
    )


def column_dim(table: pa.Table, name: str) -> int | None:
    """Dimension of the vectors in a column; None if all are null.

    Raises:
        FeatureMismatchError: vectors differ in dimension, or hold a null, a NaN or an infinity.
    """
    column = table[name]
    if not pa.types.is_list(column.type):
        matrix, found = matrix_of(column)
        if not np.isfinite(matrix).all():
            raise FeatureMismatchError(f"Expected finite numbers in {name}, got a NaN or an infinity.")
        return matrix.shape[1] if found.any() else None
    lengths = pc.min_max(pc.list_value_length(column))
    low, high = lengths["min"].as_py(), lengths["max"].as_py()
    if low != high or low == 0:
        raise FeatureMismatchError(
            f"Expected vectors of one dimension in {name}, got lengths {low} to {high}."
        )
    for chunk in column.chunks:
        values = chunk.flatten()
        if values.null_count or not np.isfinite(values.to_numpy()).all():
            raise FeatureMismatchError(
                f"Expected finite numbers in {name}, got a null, a NaN or an infinity."
            )
    return None if low is None else int(low)


def vector_column(matrix: Matrix, found: Mask, store_dtype: StoreDtype = "float32") -> pa.Array:
    """The rows of a matrix as list<float32>, or packed as binary; null where not found.

    Args:
        matrix: float32 [n, d].
        found: bool [n].
        store_dtype: how the numbers are stored.

    Raises:
        FeatureStoreError: the matrix has more numbers than one Arrow list holds.
    """
    rows = np.ascontiguousarray(matrix if found.all() else matrix[found], np.float32)
    if store_dtype != "float32":
        packed = iter(pack_vectors(rows, store_dtype))
        return pa.array([next(packed) if there else None for there in found.tolist()], pa.binary())
    ends = np.cumsum(found, dtype=np.int64) * matrix.shape[1]
    if len(ends) and ends[-1] > np.iinfo(np.int32).max:
        raise FeatureStoreError(
            f"A table of {len(found)} vectors of {matrix.shape[1]} numbers passes 2**31 numbers. "
            "Write the run in several parts."
        )
    offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(rows.reshape(-1)), mask=pa.array(~found))


def matrix_of(column: pa.Array | pa.ChunkedArray) -> tuple[Matrix, Mask]:
    """The inverse of `vector_column`: vectors of one dimension, float32 [n, d], and found [n].

    Rows without a vector are zero; d is 0 if there is none.

    Raises:
        FeatureMismatchError: packed vectors differ in dimension or dtype.
    """
    found = np.asarray(column.is_valid())
    if pa.types.is_list(column.type):
        numbers = np.asarray(pc.list_flatten(column))
        rows = numbers.reshape(int(found.sum()), -1) if len(numbers) else np.zeros((0, 0), np.float32)
    else:
        rows = unpack_vectors(column.drop_null().to_pylist())
    matrix = np.zeros((len(found), rows.shape[1]), np.float32)
    if len(rows):
        matrix[found] = rows
    return matrix, found
