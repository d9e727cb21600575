"""What a run of `adapt` would train and need, before it starts (`adapt --dry-run`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from sda_features.catalog import Catalog, Item
from sda_features.config import AdaptSettings
from sda_features.errors import CatalogError
from sda_features.images import fit_within
from sda_features.lvlm.backbone import Backbone, PromptBatch
from sda_features.lvlm.encoder import PromptEncoder
from sda_features.prompts import text_prompt

SAMPLE = 64  # items whose prompts are measured
PROBE = 4  # items that are encoded to measure activations
OPTIMISER_BYTES = 16  # of a trained float32 value: itself, its gradient, two moments


@dataclass(frozen=True)
class Plan:
    """A run's size, measured on the first items of the catalogue.

    Attributes:
        trainable_parameters, total_parameters: counts; 4-bit weights count as what they stand for.
        text_tokens, image_tokens: mean tokens of an item's two prompts.
        base_bytes: base weights as they are held in memory.
        optimiser_bytes: trained values, their gradients and AdamW's moments.
        activation_bytes: what a micro batch keeps for its backward pass.
        steps_per_epoch: optimiser steps that show every item once.
    """

    trainable_parameters: int
    total_parameters: int
    text_tokens: float
    image_tokens: float
    base_bytes: int
    optimiser_bytes: int
    activation_bytes: int
    steps_per_epoch: float

    @property
    def memory_bytes(self) -> int:
        """Estimate of the whole, without what libraries and the allocator hold besides."""
        return self.base_bytes + self.optimiser_bytes + self.activation_bytes


def plan(settings: AdaptSettings, catalog: Catalog) -> Plan:
    """Load the model, measure a few items, train nothing.

    Activations are counted, not guessed: the tensors that autograd keeps for the backward pass of a
    few items, scaled to the micro batch. A plain step holds those of both modalities at a time, a
    step with gradient caching those of one.

    Raises:
        CatalogError: none of the first items has both a text and a picture.
    """
    shrink = partial(fit_within, longest_side=settings.prompts.max_image_side)
    complete = (item for item in catalog.items(shrink=shrink) if item.fields and item.image is not None)
    items = list(islice(complete, SAMPLE))
    if not items:
        raise CatalogError(f"{catalog.settings.path} has no item with both a text and a picture.")
    backbone = Backbone(settings.backbone)
    encoder = PromptEncoder(backbone, settings.adapter, settings.projection)
    if settings.train.gradient_checkpointing:
        encoder.enable_gradient_checkpointing()
    encoder.train()
    text, image = _batches(items, backbone, settings)
    micro = min(settings.train.micro_batch_size or settings.train.batch_size, settings.train.batch_size)
    kept = [_kept_bytes(encoder, batch) for batch in _batches(items[:PROBE], backbone, settings)]
    at_once = sum(kept) if micro == settings.train.batch_size else max(kept)
    trained = sum(parameter.numel() for parameter in encoder.trainable().values())
    base = [parameter for parameter in encoder.model.parameters() if not parameter.requires_grad]
    return Plan(
        trainable_parameters=trained,
        total_parameters=trained + backbone.model.num_parameters(exclude_embeddings=False) - _inside(encoder),  # type: ignore[operator]
        text_tokens=text.lengths.float().mean().item(),
        image_tokens=image.lengths.float().mean().item(),
        base_bytes=sum(parameter.numel() * parameter.element_size() for parameter in base),
        optimiser_bytes=trained * OPTIMISER_BYTES,
        activation_bytes=at_once * micro // min(PROBE, len(items)),
        steps_per_epoch=catalog.rows / settings.train.batch_size,
    )


def _batches(
    items: list[Item], backbone: Backbone, settings: AdaptSettings
) -> tuple[PromptBatch, PromptBatch]:
    most = settings.prompts.max_text_tokens
    texts = [backbone.text_tokens(text_prompt(item.fields, settings.prompts) or "", most) for item in items]
    images = [backbone.image_tokens(item.image, settings.prompts) for item in items if item.image is not None]
    return backbone.collate(texts, "text"), backbone.collate(images, "image")


def _kept_bytes(encoder: PromptEncoder, batch: PromptBatch) -> int:
    """Bytes of the distinct buffers that autograd keeps for the backward pass of one batch."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor keeps its address from reuse
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        encoder(batch)
    return sum(size for size, _ in kept.values())


def _inside(encoder: PromptEncoder) -> int:
    """Trained values that sit inside the base model (the LoRA factors)."""
    return sum(parameter.numel() for parameter in encoder.model.parameters() if parameter.requires_grad)
