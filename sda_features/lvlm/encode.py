"""Items to vectors: shards of rows sorted by length, so that batches carry little padding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from sda_features.catalog import Item
from sda_features.lvlm.backbone import Prompt
from sda_features.lvlm.checkpoint import LoadedEncoder
from sda_features.prompts import text_prompt


@dataclass(frozen=True, eq=False)
class EncodedItems:
    """Vectors of n items in catalogue order.

    Attributes:
        item_ids: n ids.
        content_hashes: n hashes of the catalogue rows.
        text: float32 [n, d]; zero where `text_found` [n] is False.
        image: float32 [n, d]; zero where `image_found` [n] is False.
    """

    item_ids: list[str]
    content_hashes: list[str]
    text: NDArray[np.float32]
    text_found: NDArray[np.bool_]
    image: NDArray[np.float32]
    image_found: NDArray[np.bool_]


def encode_items(
    loaded: LoadedEncoder,
    items: Iterable[Item],
    batch_size: int = 32,
    shard_rows: int = 1024,
    advance: Callable[[int], object] = lambda vectors: None,
) -> Iterator[EncodedItems]:
    """Yield the vectors of every `shard_rows` items, in order.

    Args:
        loaded: encoder with its prompts and normalisation.
        items: usable catalogue rows; those without text and picture are left out, because the
            catalogue's report already lists them.
        batch_size: sequences encoded together.
        shard_rows: items held in memory at a time.
        advance: told after each batch how many vectors it made, for progress bars.
    """
    backbone, prompts = loaded.encoder.backbone, loaded.prompts
    pairs = ((item, text_prompt(item.fields, prompts)) for item in items)
    usable = ((item, text) for item, text in pairs if text is not None or item.image is not None)
    while shard := list(islice(usable, shard_rows)):
        texts = [None if text is None else backbone.text_tokens(text) for _, text in shard]
        images = [
            None if item.image is None else backbone.image_tokens(item.image, prompts) for item, _ in shard
        ]
        text, text_found = _encode(loaded, "text", texts, batch_size, advance)
        image, image_found = _encode(loaded, "image", images, batch_size, advance)
        yield EncodedItems(
            [item.item_id for item, _ in shard],
            [item.content_hash for item, _ in shard],
            text,
            text_found,
            image,
            image_found,
        )


def _encode(
    loaded: LoadedEncoder,
    modality: str,
    prompts: Sequence[Prompt | None],
    batch_size: int,
    advance: Callable[[int], object],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Vectors [n, d] of `prompts` in their order, and which of them are not None [n]."""
    present = {row: prompt for row, prompt in enumerate(prompts) if prompt is not None}
    by_length = sorted(present, key=lambda row: len(present[row].token_ids), reverse=True)
    matrix = np.zeros((len(prompts), loaded.encoder.dim), np.float32)
    found = np.zeros(len(prompts), np.bool_)
    found[by_length] = True
    with torch.inference_mode():
        for start in range(0, len(by_length), batch_size):
            rows = by_length[start : start + batch_size]
            batch = loaded.encoder.backbone.collate([present[row] for row in rows], modality)
            vectors = loaded.encoder(batch)
            matrix[rows] = (F.normalize(vectors, dim=1) if loaded.normalize else vectors).cpu().numpy()
            advance(len(rows))
    return matrix, found
