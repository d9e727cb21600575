"""The training loop of `adapt`: catalogue in, checkpoint out (paper, section 2.3, first stage)."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sda_features.artifacts import sha256_json
from sda_features.catalog.rows import Catalog, CatalogReport
from sda_features.config import AdaptSettings
from sda_features.errors import SettingsError
from sda_features.logs.behaviour import read_behaviour
from sda_features.lvlm.backbone import Backbone, PromptBatch
from sda_features.lvlm.checkpoint import save_checkpoint
from sda_features.lvlm.cmsa import LossOutput, alignment_loss
from sda_features.lvlm.encoder import PromptEncoder
from sda_features.lvlm.gradient_cache import accumulate_gradients, passes
from sda_features.lvlm.memory import memory_advice
from sda_features.lvlm.prefetch import prefetch
from sda_features.lvlm.processes import Processes
from sda_features.lvlm.reduction import fit_rotation
from sda_features.lvlm.relations import BaseVectors, Relations, write_base_vectors
from sda_features.lvlm.run_folder import check_loss, check_weights, finished_run, writing_run
from sda_features.lvlm.training_data import MOST_HELD_OUT, Sampler, TrainingPairs, hold_out, write_pairs
from sda_features.lvlm.training_log import TrainingLog
from sda_features.lvlm.training_state import restore_state, save_state, saved_states
from sda_features.lvlm.validation import Validation, sample_vectors
from sda_features.results import Result

logger = logging.getLogger(__name__)

UNIFORM_TEACHER = 0.98  # share of log N above which the teacher teaches nothing
KEPT_DIMS = (32, 64, 128, 256, 512, 1024)  # for which the checkpoint tells what --dim keeps
BATCHES_AHEAD = 2  # micro batches prepared while the model runs
READ_EVERY = 10  # steps after which a GPU is asked for what they logged: asking waits for it
COLLAPSED_SPREAD = 0.99  # norm of the mean unit vector above which all vectors are nearly alike


@dataclass(frozen=True)
class AdaptResult(Result):
    """What a run of `adapt` leaves behind.

    Attributes:
        pairs: number of items with both modalities.
        loss: of the last step, in nats.
        held_out: number of these items that were not trained on.
        recall: step of the kept weights and what `Validation` measures of them; empty without any.
        items_per_second: training throughput of this process and its peers.
        texts_cut: texts that were read and are longer than `max_text_tokens`.
        finished_before: `resume` found a run that had ended, and did nothing.
    """

    checkpoint: Path
    pairs: int
    held_out: int
    trainable_parameters: int
    steps: int
    loss: float
    recall: dict[str, float]
    items_per_second: float
    report: CatalogReport
    texts_cut: int
    finished_before: bool = False

    def as_dict(self) -> dict[str, Any]:
        """See `Result`; of the report its count."""
        values = {name: value for name, value in vars(self).items() if name not in ("recall", "report")}
        held_out = {"items": self.held_out, **self.recall}
        return {**values, "held_out": held_out, "bad_rows": self.report.bad_rows}

    def __str__(self) -> str:
        place = f"checkpoint  {self.checkpoint}"
        if self.finished_before:
            return f"finished    the run has ended after {self.steps} steps; nothing was done\n{place}"
        lines = [f"catalogue   {self.report}"]
        if self.texts_cut:
            lines.append(f"cut         {self.texts_cut:,} texts are longer than --max-text-tokens")
        items = self.pairs - self.held_out
        lines.append(f"trained     {self.trainable_parameters:,} parameters on {items:,} items")
        speed = f"{self.items_per_second:.0f} items/s"
        lines.append(f"loss        {self.loss:.4f} after {self.steps} steps, {speed}")
        if recall := self.recall:
            lines.append(
                f"held out    {self.held_out} items, text to image R@1 {recall['recall@1']:.3f}, "
                f"R@10 {recall['recall@10']:.3f}, neighbours@10 {recall['neighbours@10']:.3f}, "
                f"at step {recall['step']}"
            )
        return "\n".join([*lines, place])


def finetune(
    settings: AdaptSettings, catalog: Catalog, output: Path, progress: bool = True, resume: bool = False
) -> AdaptResult:
    """Train the adapter on a catalogue and write `output`/checkpoint.

    Args:
        catalog: `settings.catalog`, opened.
        output: run folder; gets checkpoint/, training_log.jsonl and catalog_report.jsonl.
        resume: go on from the newest state in `output`; the end is the same as without a break.

    Raises:
        CatalogError, BackboneError, SettingsError, CheckpointError: bad input, before any training.
    """
    if settings.adapter.kind == "none" and settings.projection.kind != "linear":
        raise SettingsError(
            "Nothing to train: --adapter none with a projection that has no parameters. Choose --adapter moda or "
            "lora, or --projection linear; for vectors of the model as it is, run `materialize --model`."
        )
    is_main = Processes(settings.backbone.device).is_main
    with writing_run(output) if is_main else contextlib.nullcontext():
        if resume and (stored := finished_run(settings, output)):
            return _result(stored.manifest, output, catalog, math.nan, finished_before=True)
        return _finetune(settings, catalog, output, progress, resume)


def _result(
    manifest: dict[str, Any], output: Path, catalog: Catalog, items_per_second: float, finished_before: bool
) -> AdaptResult:
    """The result of a run that has ended, from its manifest."""
    data, metrics = manifest["data"], manifest["metrics"]
    recall = {name: value for name, value in metrics.get("held_out", {}).items() if name != "items"}
    return AdaptResult(
        output / "checkpoint",
        data["pairs"],
        data["held_out"],
        manifest["trainable_parameters"],
        metrics["steps"],
        metrics["loss"],
        recall,
        items_per_second,
        catalog.report,
        data.get("texts_cut", 0),
        finished_before,
    )


def _finetune(
    settings: AdaptSettings, catalog: Catalog, output: Path, progress: bool, resume: bool
) -> AdaptResult:
    states = output / "states"
    if saved_states(states) and not resume:
        raise SettingsError(
            f"{output} holds an unfinished run. Go on with --resume, or choose another --output."
        )
    behaviour = read_behaviour(settings.behaviour)
    train = settings.train
    processes = Processes(settings.backbone.device)
    progress = progress and processes.is_main
    torch.manual_seed(train.seed)
    if train.deterministic:  # from here to the end of the process; it costs a GPU some speed
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
        torch.use_deterministic_algorithms(True, warn_only=True)
    backbone = Backbone(settings.backbone)
    encoder = PromptEncoder(backbone, settings.adapter, settings.projection)
    if train.gradient_checkpointing:
        encoder.enable_gradient_checkpointing()
    log_temperature = nn.Parameter(
        torch.tensor(math.log(settings.loss.temperature), device=backbone.device),
        requires_grad=settings.loss.learn_temperature,
    )
    encoder.train()  # before anything is encoded, see `PromptEncoder.without_dropout`
    weights = encoder.trainable()
    parameters = weights | ({"log_temperature": log_temperature} if settings.loss.learn_temperature else {})
    on_gpu = backbone.device.type == "cuda"
    optimizer = torch.optim.AdamW(
        parameters.values(), train.learning_rate, weight_decay=train.weight_decay, fused=on_gpu
    )
    scaler = torch.amp.GradScaler(backbone.device.type, enabled=backbone.dtype == torch.float16)

    if processes.is_main:
        usable = train.steps * train.batch_size + MOST_HELD_OUT
        singles = settings.loss.structure_weight > 0
        write_pairs(catalog, settings.prompts, output / "pairs.arrow", progress, usable, train.seed, singles)
        catalog.report.write(output / "catalog_report.jsonl")
    processes.wait()
    pairs = TrainingPairs(output / "pairs.arrow")
    training, held_out = hold_out(len(pairs), train.validation_share, train.seed)
    identity = {
        "settings": sha256_json(settings.model_dump(mode="json", exclude={"catalog": {"path"}})),
        "data": pairs.sha256,
        "base model": backbone.fingerprint(),
        "number of processes": processes.count,
        "interactions": behaviour and behaviour.identity["training_sha256"],
    }
    micro = min(train.items_at_once, train.batch_size)
    partners, together = None, None
    if behaviour:
        partners, together = behaviour.partners(pairs.item_ids, training, held_out)
    sampler = Sampler(
        training, pairs.texts, pairs.images, train.batch_size, train.seed, processes.count, partners
    )
    base = None
    if settings.loss.uses_base_vectors:
        path = output / "base_vectors.npy"
        if not (resume and path.exists() and len(BaseVectors(path)) == len(pairs.item_ids)):
            write_base_vectors(path, encoder, pairs, settings.prompts, micro, processes)
        base = BaseVectors(path)
    validation = Validation(encoder, pairs, held_out, settings, processes, together)
    relations = Relations(settings.loss, base, partners, training, sampler.batch_size, backbone.device)
    torch.manual_seed(train.seed + 1 + processes.rank)  # dropout differs between processes
    standing = restore_state(states, parameters, optimizer, identity, processes)

    steps = range(standing.step, train.steps)
    own = sampler.step(0).map(processes.share)
    micro_batches = sum(math.ceil(len(items) / micro) for items in (own.with_text, own.with_image))

    def gathered(vectors: Tensor) -> Tensor:
        """The vectors of all processes: first those of the pairs, then those of single modalities."""
        parts = (vectors[: len(own.pairs)], vectors[len(own.pairs) :])
        return torch.cat([processes.all_gather_with_grad(part) for part in parts if len(part)])

    def step_loss(step: int) -> Callable[[Tensor, Tensor], LossOutput]:
        known = relations.known(sampler.step(step))
        return lambda text, image: alignment_loss(text, image, settings.loss, log_temperature.exp(), known)

    def planned() -> Iterator[PromptBatch]:
        for step in steps:
            own = sampler.step(step).map(processes.share)
            for _ in range(passes(micro_batches)):
                yield from pairs.micro_batches(
                    own.with_text, backbone, settings.prompts, micro, own.with_image
                )

    rate = math.nan
    result: LossOutput | None = None
    started = time.perf_counter()
    log = TrainingLog(output, standing.step, processes.is_main, train.tensorboard)
    with (
        memory_advice("--micro-batch-size", "--gradient-checkpointing", "--quantization nf4"),
        contextlib.closing(log),
        prefetch(planned(), BATCHES_AHEAD) as batches,
    ):
        bar = tqdm(steps, "adapting", train.steps, initial=standing.step, unit="step", disable=not progress)
        for step in bar:
            learning_rate = train.learning_rate * warmup_cosine(step, train.warmup_steps, train.steps)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.zero_grad(set_to_none=True)
            result = accumulate_gradients(
                encoder,
                batches,
                micro_batches,
                step_loss(step),
                globally=gathered,
                scale=scaler.scale,
            )
            processes.sum_gradients(weights.values())
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(parameters.values(), train.max_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            standing.step = step + 1
            rate = sampler.batch_size * (step + 1 - steps.start) / (time.perf_counter() - started)
            warn_of_collapse(step, result)
            record: dict[str, float | Tensor] = {
                **vars(result),
                "grad_norm": norm,
                "learning_rate": learning_rate,
                "temperature": log_temperature.exp(),
                "items_per_second": rate,
            }
            validating = standing.step % train.validate_every == 0 or standing.step == train.steps
            if validating and len(validation):
                record |= validation.update(standing, weights)
            log.write(step, record)
            saving = standing.step % train.save_every == 0
            if saving or not on_gpu or standing.step % READ_EVERY == 0:
                check_loss(step, result.loss.item(), settings)
                if shown := log.flush():
                    bar.set_postfix_str(
                        "loss {loss:.3f}, teacher entropy {teacher_entropy:.2f}, "
                        "{items_per_second:.0f} items/s".format_map(shown),
                        refresh=False,
                    )
            if standing.stale >= train.patience:
                logger.warning(
                    "validation (%s) has not improved %d times; stopping.", train.validate_on, standing.stale
                )
                break
            if saving:
                check_weights(parameters.values(), settings)
                save_state(states, standing, parameters, optimizer, identity, processes, train.keep_states)

    metrics: dict[str, Any] = {
        "steps": standing.step,
        "loss": math.nan if result is None else result.loss.item(),
        "temperature": log_temperature.exp().item(),
    }
    if standing.best_weights:
        with torch.no_grad():
            for name, parameter in weights.items():
                parameter.copy_(standing.best_weights[name])
        recall = validation.measure() | {"step": standing.best_step}
        metrics["held_out"] = {"items": len(validation), **recall}
    check_weights(parameters.values(), settings)
    if processes.is_main:
        rotation, kept = fit_rotation(sample_vectors(encoder, pairs, training, settings))
        metrics["kept_by_dim"] = {dim: round(kept[dim - 1], 4) for dim in KEPT_DIMS if dim <= len(kept)}
    data: dict[str, Any] = {
        "path": str(settings.catalog.path),
        "pairs": len(pairs),
        "held_out": len(validation),
        "sha256": pairs.sha256,
        "texts_cut": len(pairs.cut),
    }
    if behaviour is not None:
        data["behaviour"] = behaviour.identity | {"pairs": len(behaviour.pairs)}
    count = sum(parameter.numel() for parameter in parameters.values())
    manifest = {"data": data, "trainable_parameters": count, "metrics": metrics}
    if processes.is_main:
        save_checkpoint(output / "checkpoint", encoder, settings, manifest, rotation)
        for name in ("pairs.arrow", "base_vectors.npy"):
            (output / name).unlink(missing_ok=True)
        shutil.rmtree(states, ignore_errors=True)
    processes.wait()
    return _result(manifest, output, catalog, rate, finished_before=False)


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Factor on the learning rate: linear to 1 over `warmup` steps, then half a cosine to 0 at `total`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def warn_of_collapse(step: int, result: LossOutput) -> None:
    """Every fifty steps, log a warning when teacher or vectors show a collapsing space."""
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
