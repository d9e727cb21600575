"""What makes vectors of items: all that `encode_items` asks of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from PIL.Image import Image
from torch import Tensor

from sda_features.lvlm.backbone import Prompt, PromptBatch
from sda_features.lvlm.dual_encoder import DualBatch

Batch = PromptBatch | DualBatch  # as the encoder that collated it takes it


class ItemEncoder(Protocol):
    """A loaded model and how it reads an item: an adapted or unadapted LVM, or a dual encoder.

    Threads read and prepare items while the model runs, so every method may run beside the others.
    """

    @property
    def version(self) -> str:
        """12 hex digits over all that vectors depend on: those of two versions lie in two spaces."""

    @property
    def dim(self) -> int:
        """Dimension of the vectors of both modalities."""

    @property
    def device(self) -> torch.device:
        """Where the model runs."""

    def prompt(self, fields: Mapping[str, str]) -> str | None:
        """The text of an item, from its fields in catalogue order; None: it has none."""

    def shrink(self, picture: Image) -> Image:
        """An RGB picture as it waits to be encoded: no larger than the model sees it."""

    def text_tokens(self, text: str) -> Prompt:
        """Tokenise what `prompt` gave."""

    def image_length(self, picture: Image) -> int:
        """Sequence length of what `image_tokens` gives."""

    def image_tokens(self, picture: Image) -> Any:
        """Make the model's input of what `shrink` gave."""

    def collate(self, sequences: list[Any], modality: str) -> Batch:
        """Make a batch of sequences of one modality."""

    def vectors(self, batch: Any) -> Tensor:
        """Vectors as they are stored: float32 [B, dim], rows in the order that was collated."""
