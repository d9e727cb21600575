"""The training loop of `adapt`: catalogue in, checkpoint out (paper, section 2.3, first stage)."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sda_features.catalog import Catalog, CatalogReport
from sda_features.config import AdaptSettings
from sda_features.errors import SettingsError
from sda_features.lvlm.backbone import Backbone
from sda_features.lvlm.checkpoint import save_checkpoint
from sda_features.lvlm.cmsa import LossOutput, alignment_loss
from sda_features.lvlm.encoder import PromptEncoder
from sda_features.lvlm.gradient_cache import accumulate_gradients
from sda_features.lvlm.training_data import TrainingPairs, prefetch_batches

logger = logging.getLogger(__name__)

UNIFORM_TEACHER = 0.98  # share of log N above which the teacher teaches nothing
COLLAPSED_SPREAD = 0.99  # norm of the mean unit vector above which all vectors are nearly alike


@dataclass(frozen=True)
class AdaptResult:
    """What a run of `adapt` leaves behind.

    Attributes:
        checkpoint: folder of the finished checkpoint.
        pairs: number of items with both modalities.
        trainable_parameters: count of trained values.
        loss: mean loss of the last tenth of the steps, in nats.
        items_per_second: training throughput.
        report: bad catalogue rows.
    """

    checkpoint: Path
    pairs: int
    trainable_parameters: int
    loss: float
    items_per_second: float
    report: CatalogReport


def finetune(settings: AdaptSettings, catalog: Catalog, output: Path, progress: bool = True) -> AdaptResult:
    """Train the adapter on a catalogue and write `output`/checkpoint.

    Args:
        settings: everything the run depends on.
        catalog: `settings.catalog`, opened.
        output: run folder; gets checkpoint/, training_log.jsonl and catalog_report.jsonl.
        progress: whether to draw progress bars.

    Raises:
        CatalogError, BackboneError, SettingsError: bad input, before any training.
    """
    if settings.adapter.kind == "none" and settings.projection.kind != "linear":
        raise SettingsError(
            "Nothing to train: --adapter none with a projection that has no parameters. Choose --adapter moda or "
            "lora, or --projection linear; for vectors of the model as it is, run `materialize --model`."
        )
    train = settings.train
    torch.manual_seed(train.seed)
    backbone = Backbone(settings.backbone)
    encoder = PromptEncoder(backbone, settings.adapter, settings.projection)
    if train.gradient_checkpointing:
        encoder.enable_gradient_checkpointing()
    output.mkdir(parents=True, exist_ok=True)
    pairs = TrainingPairs.collect(catalog, settings.prompts, output / "pairs.arrow", progress)
    catalog.report.write(output / "catalog_report.jsonl")

    log_temperature = nn.Parameter(
        torch.tensor(math.log(settings.loss.temperature), device=backbone.device),
        requires_grad=settings.loss.learn_temperature,
    )
    parameters = [
        *encoder.trainable().values(),
        *([log_temperature] if log_temperature.requires_grad else []),
    ]
    optimizer = torch.optim.AdamW(parameters, lr=train.learning_rate, weight_decay=train.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, train.warmup_steps, train.steps)
    )

    def pair_loss(text: Tensor, image: Tensor) -> LossOutput:
        return alignment_loss(text, image, settings.loss, log_temperature.exp())

    batch_size = min(train.batch_size, len(pairs))
    micro = min(train.micro_batch_size or batch_size, batch_size)
    batches = prefetch_batches(
        pairs, backbone, settings.prompts, range(train.steps), batch_size, micro, train.seed
    )
    losses: list[float] = []
    encoder.train()
    start = time.perf_counter()
    with open(output / "training_log.jsonl", "w", encoding="utf-8") as log:
        bar = tqdm(batches, "adapting", train.steps, unit="step", disable=not progress)
        for step, batch in enumerate(bar):
            optimizer.zero_grad(set_to_none=True)
            result = accumulate_gradients(encoder, batch, pair_loss)
            norm = nn.utils.clip_grad_norm_(parameters, train.max_grad_norm).item()
            optimizer.step()
            schedule.step()
            losses.append(result.loss.item())
            rate = batch_size * len(losses) / (time.perf_counter() - start)
            bar.set_postfix_str(
                f"loss {losses[-1]:.3f}, teacher entropy {result.teacher_entropy:.2f}, {rate:.0f} items/s"
            )
            _warn_of_collapse(step, result)
            record: dict[str, float] = {
                "step": step,
                "loss": losses[-1],
                "teacher_entropy": result.teacher_entropy,
                "spread": result.spread,
                "grad_norm": norm,
                "learning_rate": float(schedule.get_last_lr()[0]),
                "items_per_second": rate,
            }
            log.write(json.dumps({name: _json_number(value) for name, value in record.items()}) + "\n")

    last = losses[-max(1, len(losses) // 10) :]
    outcome = AdaptResult(
        output / "checkpoint",
        len(pairs),
        sum(parameter.numel() for parameter in parameters),
        sum(last) / len(last),
        rate,
        catalog.report,
    )
    save_checkpoint(
        outcome.checkpoint,
        encoder,
        settings,
        {
            "data": {"path": str(settings.catalog.path), "pairs": len(pairs), "sha256": pairs.sha256},
            "trainable_parameters": outcome.trainable_parameters,
            "metrics": {
                "loss": outcome.loss,
                "spread": result.spread,
                "temperature": log_temperature.exp().item(),
            },
        },
    )
    (output / "pairs.arrow").unlink()
    return outcome


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Factor on the learning rate: linear to 1 over `warmup` steps, then half a cosine to 0 at `total`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _warn_of_collapse(step: int, result: LossOutput) -> None:
    if step % 50:
        return
    if result.teacher_entropy > UNIFORM_TEACHER:
        logger.warning(
            "step %d: the teacher is uniform (entropy %.3f of log N); lower --loss-teacher-temperature",
            step,
            result.teacher_entropy,
        )
    if result.spread > COLLAPSED_SPREAD:
        logger.warning(
            "step %d: vectors are nearly all alike (mean unit vector has norm %.3f); the space is collapsing",
            step,
            result.spread,
        )


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None
