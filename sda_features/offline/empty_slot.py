"""A slot without rows as stock Feast can read it: one parquet file without rows.

Feast fails on a folder without files, and leaves the views unwritten that come after it.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sda_features.offline.location import Location, is_url, open_folder, parquet_names
from sda_features.offline.schema import ID_TYPES, ITEM_ID, PACKED_SCHEMA, SCHEMA
from sda_features.serving.codec import StoreDtype
from sda_features.serving.layout import IdType

EMPTY_FILE = "no-rows-yet.parquet"


def slot_schema(id_type: IdType, store_dtype: StoreDtype) -> pa.Schema:
    """Columns of the rows of a slot."""
    schema = SCHEMA if store_dtype == "float32" else PACKED_SCHEMA
    return schema.set(0, pa.field(ITEM_ID, ID_TYPES[id_type], nullable=False))


def keep_readable(
    location: Location, id_type: IdType = "string", store_dtype: StoreDtype = "float32"
) -> None:
    """Leave a file without rows in a folder that has no other parquet file, and none beside others.

    Args:
        location: folder of a slot; created when missing.
        id_type: type of the ids in Feast.
        store_dtype: how the numbers of a vector are stored.
    """
    folder, names = open_folder(location), parquet_names(location)
    if not names:
        if not is_url(location):
            Path(location).mkdir(parents=True, exist_ok=True)
        pq.write_table(slot_schema(id_type, store_dtype).empty_table(), EMPTY_FILE, filesystem=folder)
    elif EMPTY_FILE in names and len(names) > 1:
        folder.delete_file(EMPTY_FILE)
