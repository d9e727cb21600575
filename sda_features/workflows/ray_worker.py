"""What runs in the actors of a Ray cluster: encoding rows of a catalogue."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

import pyarrow as pa

from sda_features.catalog.rows import Catalog
from sda_features.errors import CheckpointError
from sda_features.lvlm.encoded_items import EncodedItems
from sda_features.offline.schema import vector_column
from sda_features.workflows.engines import LoadEncoder, LocalEncoding, Progress, Target
from sda_features.workflows.ray_source import STORED

RESULT = pa.schema(
    [
        pa.field("item_id", pa.string()),
        pa.field("content_hash", pa.string()),
        pa.field("text", pa.list_(pa.float32())),
        pa.field("image", pa.list_(pa.float32())),
        pa.field("note", pa.string()),  # JSON, in a row of its own that is no item
    ]
)


class Worker:
    """An actor: an encoder, and the catalogue rows that Ray brings to it.

    Args:
        version: adapter version that the encoder has to have.
        batch_size: sequences encoded together.
        target: where the rows go; None, or one that is not seen from here: vectors are handed back.

    Raises:
        CheckpointError: the encoder has another version.
    """

    def __init__(
        self,
        load_encoder: LoadEncoder,
        version: str,
        catalog: Catalog,
        batch_size: int,
        target: Target | None = None,
    ) -> None:
        self.loaded = load_encoder()
        if self.loaded.version != version:
            raise CheckpointError(
                f"Expected version {version} in every worker, got {self.loaded.version} on {os.uname().nodename}: "
                "checkpoint or base model differ there. Copy them again."
            )
        self.catalog, self.batch_size = catalog, batch_size
        self.target = target if target and target.staging.is_here() else None

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Encode rows of the catalogue.

        Args:
            rows: as `ray_source.read_slice` gives them.

        Returns:
            A table of `RESULT`: the items that were encoded and not written, and a note on the other rows.
        """
        progress = Progress()
        stored = rows[STORED].to_pylist()
        known = {row["item_id"]: row["content_hash"] for row in stored if row["content_hash"] is not None}
        items = self.catalog.items(known, rows.drop_columns(STORED).to_batches(), self.loaded.shrink)
        encoding = LocalEncoding(self.loaded, self.batch_size, max(1, len(rows)))
        tables, files = [], []
        count = made = 0
        for shard in encoding.encode(items, known, progress):
            if self.target is None:
                tables.append(_table(shard))
                continue
            files.append(asdict(self.target.write(shard)))
            count += len(shard.item_ids)
            made += int(shard.text_found.sum() + shard.image_found.sum())
        counts = {"unchanged": progress.unchanged, "texts_cut": progress.texts_cut}
        written = {"files": files, "count": count, "made": made}
        note = json.dumps({**counts, **written, "problems": self.catalog.report.problems})
        return pa.concat_tables([*tables, pa.Table.from_pylist([{"note": note}], RESULT)])


def version_of(load_encoder: LoadEncoder) -> str:
    """Version of the encoder, loaded where this is called."""
    return load_encoder().version


def _table(shard: EncodedItems) -> pa.Table:
    columns = [
        pa.array(shard.item_ids, pa.string()),
        pa.array(shard.content_hashes, pa.string()),
        vector_column(shard.text, shard.text_found),
        vector_column(shard.image, shard.image_found),
        pa.nulls(len(shard.item_ids), pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=RESULT)
