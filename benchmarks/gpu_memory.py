"""Peak memory of a training step: what tensors took, and what `adapt --dry-run` expects."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.profiler import ProfilerActivity, profile

from sda_features.config import AdaptSettings
from sda_features.lvlm.backbone import PromptBatch
from sda_features.lvlm.encoder import PromptEncoder
from sda_features.lvlm.plan import OPTIMISER_BYTES, activations, base_bytes, shape_only

if TYPE_CHECKING:
    from gpu import Run


def peak(run: Run, encoder: PromptEncoder, step: Callable[[], None]) -> int:
    """Peak bytes of all tensors during a step that starts without gradients.

    On a CPU torch's profiler sees each allocation of the step; what was there before is added. The
    process as a whole tells less: its libraries take more than a toy model.
    """
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    trained = sum(of.numel() * of.element_size() for of in encoder.trainable().values())
    frozen = sum(of.numel() * of.element_size() for of in encoder.model.parameters() if not of.requires_grad)
    before = frozen + 3 * trained  # values and AdamW's two moments
    for parameter in encoder.trainable().values():
        parameter.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    assert seen.profiler is not None
    events = [of for of in seen.profiler.kineto_results.events() if of.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda of: of.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return before + most


def expected(
    settings: AdaptSettings, run: Run, batches: Callable[..., tuple[PromptBatch, PromptBatch]]
) -> int:
    """What the plan says of a step in one piece; `batches` makes some items' prompts for a backbone."""
    encoder = shape_only(settings, run.dtype)
    train = settings.train
    kept = activations(encoder, batches(run, encoder.backbone, 4))
    trained = OPTIMISER_BYTES * sum(of.numel() for of in encoder.trainable().values())
    weights = base_bytes(encoder.model, settings.backbone.quantization, run.dtype)
    size = train.batch_size
    return weights + trained + kept.of(size, size, bool(train.gradient_checkpointing))
