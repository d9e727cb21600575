"""A slot without rows as stock Feast can read it: one parquet file without rows.

Feast fails on a folder without files, and leaves the views unwritten that come after it.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sda_features.artifacts import atomic_file
from sda_features.feature_store.schema import ID_TYPES, ITEM_ID, PACKED_SCHEMA, SCHEMA
from sda_features.serving.codec import StoreDtype
from sda_features.serving.layout import IdType

EMPTY_FILE = "empty.parquet"


def keep_readable(folder: Path, id_type: IdType = "string", store_dtype: StoreDtype = "float32") -> None:
    """Leave a file without rows in a folder that has no other parquet file, and none beside others.

    Args:
        folder: folder of a slot; created when missing.
        id_type: type of the ids in Feast.
        store_dtype: how the numbers of a vector are stored.
    """
    empty = folder / EMPTY_FILE
    if any(path.name != EMPTY_FILE for path in folder.glob("[!.]*.parquet")):
        empty.unlink(missing_ok=True)
    elif not empty.exists():
        schema = SCHEMA if store_dtype == "float32" else PACKED_SCHEMA
        schema = schema.set(0, pa.field(ITEM_ID, ID_TYPES[id_type], nullable=False))
        with atomic_file(empty) as temporary:
            pq.write_table(schema.empty_table(), temporary)
