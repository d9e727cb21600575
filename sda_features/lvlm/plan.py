"""What a run of `adapt` would train and need (`adapt --dry-run`), and what fits on a GPU.

The model is built on torch's `meta` device: layers, shapes and dtypes, but no numbers. A pass through
it costs no memory and needs no weights, and autograd keeps there what it would keep on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sda_features.catalog.images import fit_within
from sda_features.catalog.prompts import text_prompt
from sda_features.catalog.rows import Catalog, Item
from sda_features.config import AdaptSettings
from sda_features.errors import CatalogError
from sda_features.lvlm.backbone import Backbone, PromptBatch
from sda_features.lvlm.encoder import PromptEncoder
from sda_features.lvlm.loading import VISION_TOWER, pick_dtype, use_device
from sda_features.lvlm.memory import Card, card_of
from sda_features.results import Result

SAMPLE = 64  # items whose prompts are measured
PROBE = 4  # items that are encoded to measure activations
OPTIMISER_BYTES = 16  # of a trained float32 value: itself, its gradient, two moments
NF4_BYTES = 0.5 + (1 + 4 / 256) / 64  # of a weight: four bits, and its block's scale, itself quantised
Quantization = Literal["none", "int8", "nf4"]


@dataclass(frozen=True)
class Activations:
    """Bytes that autograd keeps of some items for the backward pass.

    Attributes:
        items: their number.
        plain: of their texts and of their pictures, without recomputing.
        recomputed: the same with gradient checkpointing, one layer in full included.
    """

    items: int
    plain: list[int]
    recomputed: list[int]

    def of(self, items: int, batch: int, recomputed: bool) -> int:
        """Bytes of a micro batch of `items` in a step of `batch`; gradient caching holds one modality at a time."""
        kept = self.recomputed if recomputed else self.plain
        return batch * (sum(kept) // self.items) if items >= batch else items * (max(kept) // self.items)


@dataclass(frozen=True)
class Fit:
    """How a run fits on a card.

    Attributes:
        micro_batch_size: items encoded at a time; 0: not even one fits.
        memory_bytes: of such a micro batch.
    """

    quantization: Quantization
    gradient_checkpointing: bool
    micro_batch_size: int
    memory_bytes: int


@dataclass(frozen=True)
class Plan(Result):
    """A run's size, measured on the first items of the catalogue.

    Attributes:
        trainable_parameters, total_parameters: counts; 4-bit weights count as what they stand for.
        text_tokens, image_tokens: mean tokens of an item's two prompts.
        base_bytes: base weights as they are held in memory.
        optimiser_bytes: trained values, their gradients and AdamW's moments.
        activation_bytes: what a micro batch keeps for its backward pass.
        steps_per_epoch: optimiser steps that show every item once.
        micro_batch_size, gradient_checkpointing: of the plan.
        steps, batch_size: of the settings.
        card, usable_bytes: the GPU's name, and what tensors may fill of it; None without one.
        fits: what fits on it, by quantisation and checkpointing.
    """

    trainable_parameters: int
    total_parameters: int
    text_tokens: float
    image_tokens: float
    base_bytes: int
    optimiser_bytes: int
    activation_bytes: int
    steps_per_epoch: float
    micro_batch_size: int
    gradient_checkpointing: bool
    steps: int
    batch_size: int
    card: str | None = None
    usable_bytes: int | None = None
    fits: tuple[Fit, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """See `Result`; with `memory_bytes` and `best`."""
        best = asdict(self.best) if self.best else None
        return {**asdict(self), "memory_bytes": self.memory_bytes, "best": best}

    def __str__(self) -> str:
        counts = f"{self.trainable_parameters:,} of {self.total_parameters:,} parameters"
        detail = (
            f"base {self.base_bytes / 2**20:,.0f}, optimiser {self.optimiser_bytes / 2**20:,.0f}, "
            f"activations {self.activation_bytes / 2**20:,.0f}"
        )
        lines = [
            f"trainable   {counts} ({self.trainable_parameters / self.total_parameters:.2%})",
            f"tokens      {self.text_tokens:.0f} a text, {self.image_tokens:.0f} a picture",
            f"steps       {self.steps:,}, {self.steps_per_epoch:,.0f} show every item once",
            f"memory      about {self.memory_bytes / 2**20:,.0f} MiB ({detail})",
        ]
        if self.usable_bytes is None:
            return "\n".join(lines)
        lines.append(f"card        {self.card}, {self.usable_bytes / 2**30:.1f} GiB to use")
        for fit in self.fits:
            size = f"micro batch {fit.micro_batch_size:4}, {fit.memory_bytes / 2**30:.1f} GiB"
            kept = "recomputed" if fit.gradient_checkpointing else "kept"
            lines.append(
                f"  {fit.quantization:5} {kept:10} {size if fit.micro_batch_size else 'does not fit'}"
            )
        if (best := self.best) is None:
            lines.append("suggested   nothing fits: a smaller model, or shorter prompts and smaller pictures")
        else:
            again = "" if best.gradient_checkpointing else "no-"
            lines.append(
                f"suggested   --quantization {best.quantization} --batch-size {self.batch_size} "
                f"--micro-batch-size {best.micro_batch_size} --{again}gradient-checkpointing"
            )
        return "\n".join(lines)

    @property
    def memory_bytes(self) -> int:
        """Estimate of the whole, without what libraries and the allocator hold besides."""
        return self.base_bytes + self.optimiser_bytes + self.activation_bytes

    @property
    def best(self) -> Fit | None:
        """What to choose on the card: whole batches before cached ones, exact weights before quantised ones."""
        able = [fit for fit in self.fits if fit.micro_batch_size]
        return max(able, key=_preference, default=None)


def plan(settings: AdaptSettings, catalog: Catalog, card: Card | None = None) -> Plan:
    """Measure a few items on a model without numbers; train nothing.

    Args:
        settings: of the run; `micro_batch_size` "auto" and a `gradient_checkpointing` that is not given are
            what fits best with the quantisation given.
        catalog: `settings.catalog`, opened.
        card: the GPU to plan for; None: the one that the settings name, or none.

    Raises:
        CatalogError: none of the first items has both a text and a picture.
    """
    if card is None and settings.backbone.device != "meta":
        card = card_of(use_device(settings.backbone.device))
    shrink = partial(fit_within, longest_side=settings.prompts.max_image_side)
    complete = (item for item in catalog.items(shrink=shrink) if item.fields and item.image is not None)
    items = list(islice(complete, SAMPLE))
    if not items:
        raise CatalogError(f"{catalog.settings.path} has no item with both a text and a picture.")
    dtype = pick_dtype(settings.backbone.dtype, torch.device("cpu"))
    if card is not None and settings.backbone.dtype in ("auto", "fast"):
        dtype = torch.bfloat16 if card.bfloat16 else torch.float32
    encoder = shape_only(settings, dtype)
    backbone, train = encoder.backbone, settings.train
    text, image = _batches(items, backbone, settings)
    kept = activations(encoder, _batches(items[:PROBE], backbone, settings))
    trained = sum(parameter.numel() for parameter in encoder.trainable().values())
    frozen = sum(of.numel() for of in encoder.model.parameters() if not of.requires_grad)
    optimiser = trained * OPTIMISER_BYTES
    fits = tuple(
        _fit(kept, base_bytes(encoder.model, kind, dtype) + optimiser, train.batch_size, card, kind, again)
        for kind in (("none", "int8", "nf4") if card else ())
        for again in (False, True)
    )
    own = [fit for fit in fits if fit.quantization == settings.backbone.quantization]
    if train.gradient_checkpointing is not None:
        own = [fit for fit in own if fit.gradient_checkpointing == train.gradient_checkpointing]
    chosen = max(own, key=_preference, default=None)
    again = bool(chosen.gradient_checkpointing if chosen else train.gradient_checkpointing)
    micro = min(train.items_at_once, train.batch_size)
    if train.micro_batch_size == "auto" and chosen:
        micro = max(1, chosen.micro_batch_size)
    return Plan(
        trainable_parameters=trained,
        total_parameters=trained + frozen,
        text_tokens=text.lengths.float().mean().item(),
        image_tokens=image.lengths.float().mean().item(),
        base_bytes=base_bytes(encoder.model, settings.backbone.quantization, dtype),
        optimiser_bytes=optimiser,
        activation_bytes=kept.of(micro, train.batch_size, again),
        steps_per_epoch=catalog.rows / train.batch_size,
        micro_batch_size=micro,
        gradient_checkpointing=again,
        steps=train.steps,
        batch_size=train.batch_size,
        card=card.name if card else None,
        usable_bytes=card.usable if card else None,
        fits=fits,
    )


def fitted(settings: AdaptSettings, catalog: Catalog) -> AdaptSettings:
    """The settings with numbers in place of what a GPU's memory decides; without one the batch is one piece."""
    train = settings.train
    micro, again = train.micro_batch_size, train.gradient_checkpointing
    if (micro == "auto" or again is None) and use_device(settings.backbone.device).type == "cuda":
        made = plan(settings, catalog)
        again = made.gradient_checkpointing
        if micro is not None:
            micro = made.micro_batch_size
    chosen = {"micro_batch_size": None if micro == "auto" else micro, "gradient_checkpointing": bool(again)}
    return settings.model_copy(update={"train": train.model_copy(update=chosen)})


def shape_only(settings: AdaptSettings, dtype: torch.dtype) -> PromptEncoder:
    """The encoder of a run on the meta device, adapter and all in `dtype`, which autocast would choose."""
    shapes = {"device": "meta", "dtype": str(dtype).removeprefix("torch.")}
    backbone = Backbone(settings.backbone.model_copy(update=shapes))
    encoder = PromptEncoder(backbone, settings.adapter, settings.projection)
    return encoder.to(dtype).train()


def activations(encoder: PromptEncoder, batches: tuple[PromptBatch, PromptBatch]) -> Activations:
    """What each item of the batches keeps, on a model of `shape_only`.

    With checkpointing a layer keeps its input, and one layer at a time all that it computes.
    """
    layers = len(encoder.model.language_model.layers)  # type: ignore[union-attr, arg-type]
    plain = [kept_bytes(encoder, batch) for batch in batches]
    encoder.enable_gradient_checkpointing()
    recomputed = [
        kept_bytes(encoder, batch) + once // layers for batch, once in zip(batches, plain, strict=True)
    ]
    return Activations(len(batches[0].lengths), plain, recomputed)


def kept_bytes(encoder: PromptEncoder, batch: PromptBatch) -> int:
    """Bytes of the distinct buffers that autograd keeps for the backward pass of one batch."""
    weights = {parameter.untyped_storage()._cdata for parameter in encoder.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = (storage.nbytes(), tensor)  # the tensor keeps its storage from reuse
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        encoder(batch)
    return sum(size for size, _ in kept.values())


def base_bytes(model: nn.Module, quantization: Quantization, dtype: torch.dtype) -> int:
    """Bytes of the frozen weights on a GPU: linears of the language model quantised, all else in `dtype`."""
    each = {"none": dtype.itemsize, "int8": 1, "nf4": NF4_BYTES}[quantization]
    total = 0.0
    for name, module in model.named_modules():
        quantised = isinstance(module, nn.Linear) and not name.startswith(VISION_TOWER)
        for kind, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                total += parameter.numel() * (each if quantised and kind == "weight" else dtype.itemsize)
    return int(total)


def _fit(
    kept: Activations, fixed: int, batch: int, card: Card | None, kind: Quantization, again: bool
) -> Fit:
    """The largest micro batch that a card holds: the batch, or the most of which an equal number make it up."""
    assert card is not None
    left = card.usable - fixed
    if kept.of(batch, batch, again) <= left:
        size = batch
    else:
        most = min(batch - 1, max(0, left) // kept.of(1, batch + 1, again))
        size = math.ceil(batch / math.ceil(batch / most)) if most else 0
    return Fit(kind, again, size, fixed + kept.of(size, batch, again))


def _preference(fit: Fit) -> tuple[int, int, bool, int]:
    """A micro batch of 8 keeps a GPU busy; then exact weights, then no recomputing, then size."""
    exact = ("nf4", "int8", "none").index(fit.quantization)
    return min(fit.micro_batch_size, 8), exact, not fit.gradient_checkpointing, fit.micro_batch_size


def _batches(
    items: list[Item], backbone: Backbone, settings: AdaptSettings
) -> tuple[PromptBatch, PromptBatch]:
    most = settings.prompts.max_text_tokens
    texts = [backbone.text_tokens(text_prompt(item.fields, settings.prompts) or "", most) for item in items]
    images = [backbone.image_tokens(item.image, settings.prompts) for item in items if item.image is not None]
    return backbone.collate(texts, "text"), backbone.collate(images, "image")
