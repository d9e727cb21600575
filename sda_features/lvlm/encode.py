"""Items to vectors: shards of rows sorted by length, so that batches carry little padding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F

from sda_features.catalog import Item
from sda_features.lvlm.backbone import Prompt
from sda_features.lvlm.checkpoint import LoadedEncoder
from sda_features.prompts import text_prompt

VECTOR_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("text_embedding", pa.list_(pa.float32())),
        ("image_embedding", pa.list_(pa.float32())),
        ("content_hash", pa.string()),
    ]
)


def encode_items(
    loaded: LoadedEncoder, items: Iterable[Item], batch_size: int = 32, shard_rows: int = 1024
) -> Iterator[pa.Table]:
    """Yield one table of vectors for every `shard_rows` items, in order.

    Args:
        loaded: encoder with its prompts and normalisation.
        items: usable catalogue rows.
        batch_size: sequences encoded together.
        shard_rows: items held in memory at a time.

    Returns:
        tables of `VECTOR_SCHEMA`; a vector is null where the item lacks the modality. Items
        without either are left out: the catalogue report lists them.
    """
    iterator = iter(items)
    backbone, prompts = loaded.encoder.backbone, loaded.prompts
    while shard := list(islice(iterator, shard_rows)):
        texts = [text_prompt(item.fields, prompts) for item in shard]
        columns = {
            "text": _encode_column(loaded, texts, backbone.text_tokens, "text", batch_size),
            "image": _encode_column(
                loaded,
                [item.image for item in shard],
                lambda image: backbone.image_tokens(image, prompts),
                "image",
                batch_size,
            ),
        }
        table = pa.table(
            [
                pa.array([item.item_id for item in shard]),
                columns["text"],
                columns["image"],
                pa.array([item.content_hash for item in shard]),
            ],
            schema=VECTOR_SCHEMA,
        )
        usable = [text is not None or item.image is not None for text, item in zip(texts, shard, strict=True)]
        yield table.filter(pa.array(usable))


def _encode_column(
    loaded: LoadedEncoder,
    sources: Sequence[Any],
    tokenize: Callable[[Any], Prompt],
    modality: str,
    batch_size: int,
) -> pa.ListArray:
    """Vectors of one modality in the order of `sources`; null where the source is None."""
    present = [index for index, source in enumerate(sources) if source is not None]
    prompts = {index: tokenize(sources[index]) for index in present}
    present.sort(key=lambda index: len(prompts[index].token_ids), reverse=True)
    matrix = np.zeros((len(sources), loaded.encoder.dim), np.float32)
    with torch.inference_mode():
        for start in range(0, len(present), batch_size):
            rows = present[start : start + batch_size]
            batch = loaded.encoder.backbone.collate([prompts[row] for row in rows], modality)
            vectors = loaded.encoder(batch)
            matrix[rows] = (F.normalize(vectors, dim=1) if loaded.normalize else vectors).cpu().numpy()
    found = np.zeros(len(sources), bool)
    found[present] = True
    return list_array(matrix, found)


def list_array(matrix: np.ndarray, found: np.ndarray) -> pa.ListArray:
    """[n, d] float32 rows as a list column, null where `found` is False."""
    lengths = np.where(found, matrix.shape[1], 0)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(matrix[found].ravel()), mask=pa.array(~found))
