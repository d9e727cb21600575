"""What an encoder gives for a shard of a catalogue; without torch, because vectors may come from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class EncodedItems:
    """Vectors of n items in catalogue order.

    Attributes:
        content_hashes: n hashes of the catalogue rows.
        text: float32 [n, d]; zero where `text_found` [n] is False.
        image: float32 [n, d]; zero where `image_found` [n] is False.
        texts_cut: texts of which the encoder reads less than the whole.
    """

    item_ids: list[str]
    content_hashes: list[str]
    text: NDArray[np.float32]
    text_found: NDArray[np.bool_]
    image: NDArray[np.float32]
    image_found: NDArray[np.bool_]
    texts_cut: int = 0
