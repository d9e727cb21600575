"""Do text and pictures pull an adapter the same way? Gradient conflict, measured (paper, section 3.3.3).

The loss depends on text vectors t and picture vectors v, which share the factors B. Its gradient is

    dL/dB = g_t + g_v,    g_t = (dt/dB)^T dL/dt,    g_v = (dv/dB)^T dL/dv,

and detaching the other modality's vectors leaves exactly one of the two terms. Their cosine says
whether a step for one modality helps or harms the other.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sda_features.catalog.rows import Catalog
from sda_features.config import (
    MODALITIES,
    AdapterSettings,
    BackboneSettings,
    LossSettings,
    ProjectionSettings,
    PromptSettings,
)
from sda_features.errors import SettingsError
from sda_features.lvlm.backbone import Backbone, PromptBatch
from sda_features.lvlm.checkpoint import load_checkpoint, read_checkpoint
from sda_features.lvlm.cmsa import BaseRelations, alignment_loss
from sda_features.lvlm.encoder import PromptEncoder
from sda_features.lvlm.gradient_cache import Encode, PairLoss, by_modality
from sda_features.lvlm.moda import adapted_layers
from sda_features.lvlm.processes import Processes
from sda_features.lvlm.relations import BaseVectors, Relations, write_base_vectors
from sda_features.lvlm.training_data import Sampler, TrainingPairs, write_pairs

WHOLE, FIRST_EXPERT = "all", "first expert"
LAST_LAYER, ALL_LAYERS = "last", "all"
ROWS_FOR_AN_ITEM = 4  # catalogue rows looked at, because some lack a text or a picture


@dataclass(frozen=True)
class Subject:
    """An encoder to diagnose, with the loss it is, or would be, trained by.

    Attributes:
        name: how reports call it.
        temperature: tau; the trained value where tau was trained.
    """

    name: str
    encoder: PromptEncoder
    adapter: AdapterSettings
    prompts: PromptSettings
    loss: LossSettings
    temperature: float


@dataclass(frozen=True)
class Conflict:
    """How the gradients of the two modalities agree in one kind of matrix.

    Attributes:
        adapter: "moda" or "lora".
        module: name of the adapted linear, e.g. "q_proj".
        columns: which columns of B: "all", or those of the "first expert" as in the paper.
        layers: "last" decoder layer, or "all" of them.
        cosine: mean `gradient_cosine` over batches and layers.
        standard_error: of that mean, from its spread over batches; NaN with one batch.
        negative_share, norm_ratio: see these functions; over batches and layers.
        measurements: number of batches times layers.
    """

    name: str
    adapter: str
    module: str
    columns: str
    layers: str
    cosine: float
    standard_error: float
    negative_share: float
    norm_ratio: float
    measurements: int


def gradient_cosine(text: Tensor, image: Tensor) -> float:
    """<g_t, g_v> / (|g_t| |g_v|) of two gradients of one shape; NaN where one of them is zero."""
    norms = text.norm() * image.norm()
    return ((text * image).sum() / norms).item() if norms > 0 else math.nan


def negative_share(cosines: Sequence[float]) -> float:
    """Share of the cosines that are below zero; NaN when one of them is NaN."""
    if any(map(math.isnan, cosines)):
        return math.nan
    return sum(cosine < 0 for cosine in cosines) / len(cosines)


def norm_ratio(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Geometric mean of |g_t| / |g_v| over (g_t, g_v); NaN when a gradient is zero.

    The geometric mean of the inverse ratio is the inverse of this one.
    """
    norms = [(text.norm().item(), image.norm().item()) for text, image in pairs]
    if not all(text > 0 and image > 0 for text, image in norms):
        return math.nan
    return math.exp(sum(math.log(text / image) for text, image in norms) / len(norms))


def modality_gradients(
    encode: Encode, batches: Sequence[PromptBatch], parameters: Sequence[Tensor], loss: PairLoss
) -> dict[str, list[Tensor]]:
    """The terms g_t and g_v (module docstring) of a step's gradient.

    Vectors of all batches are made without a graph, the loss gives dL/dt and dL/dv, and each batch
    is encoded again to send its part on: memory is that of one micro batch.

    Args:
        encode: batch -> vectors [B, d]; the same on every call.
        batches: micro batches; those of each modality, in order, make up the same N items.
        parameters: tensors that every vector depends on.
        loss: (text [N, d], image [N, d]) -> loss.

    Returns:
        "text" and "image" -> gradients in the order and shapes of `parameters`.
    """
    with torch.no_grad():
        leaves = [encode(batch).requires_grad_() for batch in batches]
    text, image = by_modality([batch.modality for batch in batches], leaves)
    upstream = torch.autograd.grad(loss(text, image).loss, leaves)
    found: dict[str, list[Tensor]] = {
        modality: [torch.zeros_like(p) for p in parameters] for modality in MODALITIES
    }
    for batch, gradient in zip(batches, upstream, strict=True):
        parts = torch.autograd.grad(encode(batch), parameters, gradient)
        for total, part in zip(found[batch.modality], parts, strict=True):
            total += part
    return found


def diagnose(
    subject: Subject,
    batches: Iterable[tuple[Sequence[PromptBatch], BaseRelations]],
    modules: Sequence[str] = ("q_proj", "k_proj"),
) -> list[Conflict]:
    """Measure gradient conflict in the B matrices of some linears, without dropout.

    Args:
        batches: steps, each the micro batches of its items, see `modality_gradients`, and what the loss
            is told of them.
        modules: names of adapted linears.

    Raises:
        SettingsError: a name is not that of an adapted linear.
    """
    layers = adapted_layers(subject.encoder.model)
    linears = {name: name.rpartition(".")[2] for name in layers}
    names = sorted(set(linears.values()))
    if unknown := [module for module in modules if module not in names]:
        raise SettingsError(
            f"{subject.name} adapts no linear named {', '.join(unknown)}; --modules can be {', '.join(names)}."
        )
    matrices = {name: next(layers[name].lora_B.parameters()) for name in layers if linears[name] in modules}

    steps: list[dict[str, tuple[Tensor, Tensor]]] = []
    _without_dropout(subject.encoder)
    for step, known in batches:
        loss = partial(alignment_loss, settings=subject.loss, temperature=subject.temperature, known=known)
        found = modality_gradients(subject.encoder, step, list(matrices.values()), loss)
        steps.append(dict(zip(matrices, zip(found["text"], found["image"], strict=True), strict=True)))

    adapter = subject.adapter
    parts = {WHOLE: adapter.rank}
    if adapter.kind == "moda" and adapter.experts > 1:
        parts = {FIRST_EXPERT: adapter.rank // adapter.experts, **parts}
    deepest = max(map(_depth, matrices))
    conflicts = []
    for module, (columns, end), which in product(modules, parts.items(), (LAST_LAYER, ALL_LAYERS)):
        wanted = [name for name in matrices if linears[name] == module]
        if which == LAST_LAYER:
            wanted = [name for name in wanted if _depth(name) == deepest]
        gradients = [[(at[name][0][:, :end], at[name][1][:, :end]) for name in wanted] for at in steps]
        conflicts.append(_summarise(subject, module, columns, which, gradients))
    return conflicts


def diagnose_on_catalog(
    subjects: Iterable[Callable[[], Subject]],
    catalog: Catalog,
    *,
    modules: Sequence[str] = ("q_proj", "k_proj"),
    items: int = 256,
    batch_size: int = 64,
    micro_batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> list[Conflict]:
    """`diagnose` each subject on the same random items of a catalogue.

    Args:
        subjects: each gives a subject; called one after the other, so that one model is in memory.
        catalog: an opened catalogue; items without a text or a picture are left out.
        items: how many items to use at most, in whole batches.
        micro_batch_size: sequences encoded at a time; bounds memory, same gradients.
    """
    conflicts: list[Conflict] = []
    collected: dict[PromptSettings, TrainingPairs] = {}
    with tempfile.TemporaryDirectory() as folder:
        for make in subjects:
            subject = make()
            prompts = subject.prompts
            if prompts not in collected:
                path = Path(folder) / f"pairs{len(collected)}.arrow"
                write_pairs(catalog, prompts, path, progress, ROWS_FOR_AN_ITEM * items, seed)
                collected[prompts] = TrainingPairs(path)
            pairs, backbone = collected[prompts], subject.encoder.backbone
            size = min(batch_size, items, len(pairs))
            base = None
            if subject.loss.uses_base_vectors:
                path = Path(folder) / "base_vectors.npy"
                write_base_vectors(path, subject.encoder, pairs, prompts, micro_batch_size, Processes("cpu"))
                base = BaseVectors(path)
            everything = np.arange(len(pairs))
            sampler = Sampler(everything, pairs.texts, pairs.images, size, seed)
            relations = Relations(subject.loss, base, None, everything, size, backbone.device)
            drawn = (sampler.step(step) for step in range(min(items, len(pairs)) // size))
            micro_batches = partial(
                pairs.micro_batches, backbone=backbone, prompts=prompts, micro=micro_batch_size
            )
            steps = ((list(micro_batches(step.pairs)), relations.known(step)) for step in drawn)
            conflicts += diagnose(subject, steps, modules)
    return conflicts


def trained(checkpoint: Path, **overrides: Any) -> Subject:
    """A checkpoint with its own loss and prompts; `overrides` as in `load_checkpoint`."""
    loaded = load_checkpoint(checkpoint, **overrides)
    stored = read_checkpoint(checkpoint)
    settings = stored.settings
    tau = stored.manifest.get("metrics", {}).get("temperature", settings.loss.temperature)
    return Subject(str(checkpoint), loaded.encoder, settings.adapter, loaded.prompts, settings.loss, tau)


def fresh(adapter: AdapterSettings, backbone: BackboneSettings, seed: int = 0) -> Subject:
    """An adapter as training would begin with it, default loss and prompts."""
    torch.manual_seed(seed)
    encoder = PromptEncoder(Backbone(backbone), adapter, ProjectionSettings())
    loss = LossSettings()
    return Subject(f"fresh {adapter.kind}", encoder, adapter, PromptSettings(), loss, loss.temperature)


def _summarise(
    subject: Subject, module: str, columns: str, layers: str, steps: list[list[tuple[Tensor, Tensor]]]
) -> Conflict:
    cosines = np.array([[gradient_cosine(*pair) for pair in step] for step in steps])  # [batches, layers]
    means = cosines.mean(axis=1)
    return Conflict(
        subject.name,
        subject.adapter.kind,
        module,
        columns,
        layers,
        cosine=means.mean().item(),
        standard_error=means.std(ddof=1).item() / len(means) ** 0.5 if len(means) > 1 else math.nan,
        negative_share=negative_share(cosines.flatten().tolist()),
        norm_ratio=norm_ratio(pair for step in steps for pair in step),
        measurements=cosines.size,
    )


def _without_dropout(encoder: PromptEncoder) -> None:
    """Training mode for all but dropout, see `PromptEncoder.without_dropout`."""
    encoder.train()
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.eval()


def _depth(name: str) -> int:
    """Position of the decoder layer that a module belongs to."""
    found = re.search(r"\.layers\.(\d+)\.", name)
    return int(found[1]) if found else -1
