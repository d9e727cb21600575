"""Gradients of one large contrastive step at the memory of a micro batch (GradCache, Gao et al. 2021).

A contrastive loss needs all vectors of the batch at once, but only the vectors: first every micro
batch is encoded without a graph, then the loss gives the gradient of each vector, then every micro
batch is encoded again, with the same dropout, and that gradient is sent through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from sda_features.config import MODALITIES
from sda_features.lvlm.backbone import PromptBatch
from sda_features.lvlm.cmsa import LossOutput

Encode = Callable[[PromptBatch], Tensor]
PairLoss = Callable[[Tensor, Tensor], LossOutput]


def unchanged(tensor: Tensor) -> Tensor:
    """The tensor itself."""
    return tensor


def accumulate_gradients(
    encode: Encode,
    batches: Iterator[PromptBatch],
    count: int,
    loss: PairLoss,
    *,
    globally: Callable[[Tensor], Tensor] = unchanged,
    scale: Callable[[Tensor], Tensor] = unchanged,
) -> LossOutput:
    """Add the gradients of `loss` over all batches to the parameters' `.grad`.

    Args:
        encode: batch -> vectors [B, d], differentiable in the parameters to train.
        batches: gives the micro batches of the step `passes(count)` times over; those of each
            modality, in order, make up the same N items.
        count: number of micro batches. With one a modality this is a plain step, else gradients
            are cached.
        loss: (text [N, d], image [N, d]) -> loss; may have trained parameters of its own.
        globally: adds the vectors of other processes, see `Processes.all_gather_with_grad`; each process
            then gets its own part of the gradient.
        scale: of the loss before the backward pass, for float16.

    Returns:
        The loss of the whole batch, detached.
    """
    cached = passes(count) > 1
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    states, modalities, vectors = [], [], []
    with torch.set_grad_enabled(not cached):
        for batch in islice(batches, count):
            states.append([torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)])
            modalities.append(batch.modality)
            vectors.append(encode(batch))
    if cached:
        vectors = [vector.requires_grad_() for vector in vectors]
    output = loss(*map(globally, by_modality(modalities, vectors)))
    scale(output.loss).backward()  # type: ignore[no-untyped-call]
    if cached:
        with torch.random.fork_rng(devices=devices):
            for batch, (state, *gpu), leaf in zip(islice(batches, count), states, vectors, strict=True):
                torch.set_rng_state(state)
                for device, gpu_state in zip(devices, gpu, strict=True):
                    torch.cuda.set_rng_state(gpu_state, device)
                encode(batch).backward(leaf.grad)  # type: ignore[no-untyped-call]
    return replace(output, loss=output.loss.detach())


def passes(count: int) -> int:
    """How often a step with `count` micro batches of both modalities encodes them."""
    return 1 if count <= 2 else 2


def by_modality(modalities: Sequence[str], vectors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Concatenate the vectors [B, d] of micro batches of these modalities: (text [N, d], image [N, d])."""
    pairs = list(zip(modalities, vectors, strict=True))
    text, image = (
        torch.cat([vector for modality, vector in pairs if modality == wanted]) for wanted in MODALITIES
    )
    return text, image
