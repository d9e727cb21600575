"""Gradients of one large contrastive step at the memory of a micro batch (GradCache, Gao et al. 2021).

A contrastive loss needs all vectors of the batch at once, but only the vectors: first every micro
batch is encoded without a graph, then the loss gives the gradient of each vector, then every micro
batch is encoded again, with the same dropout, and that gradient is sent through it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from sda_features.lvlm.backbone import PromptBatch
from sda_features.lvlm.cmsa import LossOutput

Encode = Callable[[PromptBatch], Tensor]
PairLoss = Callable[[Tensor, Tensor], LossOutput]


def unchanged(tensor: Tensor) -> Tensor:
    """The tensor itself."""
    return tensor


def accumulate_gradients(
    encode: Encode,
    batches: Sequence[PromptBatch],
    loss: PairLoss,
    *,
    globally: Callable[[Tensor], Tensor] = unchanged,
    scale: Callable[[Tensor], Tensor] = unchanged,
) -> LossOutput:
    """Add the gradients of `loss` over all batches to the parameters' `.grad`.

    Args:
        encode: batch -> vectors [B, d], differentiable in the parameters to train.
        batches: micro batches; those of each modality, in order, make up the same N items. With
            one micro batch a modality this is a plain step, else gradients are cached.
        loss: (text [N, d], image [N, d]) -> loss; may have trained parameters of its own.
        globally: adds the vectors of other processes, see `Processes.with_everyones`; each process
            then gets its own part of the gradient.
        scale: of the loss before the backward pass, for float16.

    Returns:
        The loss of the whole batch, detached.
    """
    if len(batches) <= 2:
        vectors = [encode(batch) for batch in batches]
        output = loss(*map(globally, _by_modality(batches, vectors)))
        scale(output.loss).backward()  # type: ignore[no-untyped-call]
        return _detached(output)

    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    states, vectors = [], []
    with torch.no_grad():
        for batch in batches:
            states.append(_random_state(devices))
            vectors.append(encode(batch))
    leaves = [vector.detach().requires_grad_() for vector in vectors]
    output = loss(*map(globally, _by_modality(batches, leaves)))
    scale(output.loss).backward()  # type: ignore[no-untyped-call]
    for batch, state, leaf in zip(batches, states, leaves, strict=True):
        with _replayed(state, devices):
            encode(batch).backward(leaf.grad)  # type: ignore[no-untyped-call]
    return _detached(output)


def _by_modality(batches: Sequence[PromptBatch], vectors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Concatenate the vectors of each modality: (text [N, d], image [N, d])."""
    pairs = list(zip(batches, vectors, strict=True))
    text, image = (
        torch.cat([vector for batch, vector in pairs if batch.modality == modality])
        for modality in ("text", "image")
    )
    return text, image


def _detached(output: LossOutput) -> LossOutput:
    return LossOutput(output.loss.detach(), output.teacher_entropy, output.spread)


def _random_state(devices: list[int]) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


@contextlib.contextmanager
def _replayed(state: list[Tensor], devices: list[int]) -> Iterator[None]:
    """Run the block from a recorded generator state, then return to the present one."""
    with torch.random.fork_rng(devices=devices):
        torch.set_rng_state(state[0])
        for device, device_state in zip(devices, state[1:], strict=True):
            torch.cuda.set_rng_state(device_state, device)
        yield
