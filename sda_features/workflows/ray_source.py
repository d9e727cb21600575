"""A catalogue as a data source of Ray. Workers that only read import this, and no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from sda_features.catalog.batches import CatalogSlice
from sda_features.catalog.rows import Catalog

STORED = "__stored"  # column: item id, and content hash of its stored vectors or null


class CatalogSource(Datasource):  # type: ignore[misc]
    """The rows of a catalogue, with their positions and what is stored of them.

    Args:
        known: item id -> content hash of stored vectors. Each row carries its own, so that no worker
            holds those of all.
    """

    def __init__(self, catalog: Catalog, known: Mapping[str, str]):
        super().__init__()
        ids = catalog.ids_of_rows()
        self.parts = [(part, _stored(list(islice(ids, part.rows)), known)) for part in catalog.slices()]

    def get_read_tasks(self, parallelism: int, *args: Any, **options: Any) -> list[ReadTask]:
        """One task a slice, however many Ray would like."""
        return [
            ReadTask(partial(read_slice, part, stored), BlockMetadata(part.rows, None, None, None))
            for part, stored in self.parts
        ]

    def estimate_inmemory_data_size(self) -> int | None:
        """Not known: slices are not read before they are needed."""
        return None


def read_slice(part: CatalogSlice, stored: pa.StructArray) -> Iterator[pa.Table]:
    """Yield the rows of a slice, with the columns of `batches.ROWS` and `STORED`."""
    start = 0
    for batch in part.batches():
        rows = pa.Table.from_batches([batch])
        yield rows.append_column(STORED, stored.slice(start, len(rows)))
        start += len(rows)


def _stored(item_ids: list[str], known: Mapping[str, str]) -> pa.StructArray:
    hashes = [known.get(item_id) for item_id in item_ids]
    columns = [pa.array(item_ids, pa.string()), pa.array(hashes, pa.string())]
    return pa.StructArray.from_arrays(columns, ["item_id", "content_hash"])
