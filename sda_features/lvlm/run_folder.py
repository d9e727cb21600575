"""The folder of a run of `adapt`: whose it is, whether its run has ended, and that it stays of use."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from sda_features.artifacts import check_folder, lock_folder, make_folder
from sda_features.config import AdaptSettings
from sda_features.errors import SettingsError
from sda_features.lvlm.checkpoint import FILES, MANIFEST_FILE, StoredCheckpoint, read_checkpoint

CHECKPOINT, STATES = "checkpoint", "states"
OURS = {CHECKPOINT, STATES, "training_log.jsonl", "catalog_report.jsonl", "tensorboard"}
OURS |= {"pairs.arrow", "base_vectors.npy", "base_vectors.part"}


@contextlib.contextmanager
def writing_run(output: Path) -> Iterator[None]:
    """Hold a run folder while the block runs; one that is empty in the end is removed.

    Raises:
        SettingsError: another run holds it, or it is no run folder.
    """
    check_folder(output / CHECKPOINT, FILES, "a checkpoint")
    inside = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if not inside & OURS:
        check_folder(output, OURS, "an earlier run")
    make_folder(output)
    try:
        with lock_folder(output) as held:
            if not held:
                raise SettingsError(
                    f"Another run is writing to {output}. Wait until it has ended, or choose another --output."
                )
            yield
    finally:
        with contextlib.suppress(OSError):
            output.rmdir()


def finished_run(settings: AdaptSettings, output: Path) -> StoredCheckpoint | None:
    """The checkpoint of a run that has ended; None if it has not begun or has states left.

    Raises:
        SettingsError: it has ended with other settings.
        CheckpointError: the checkpoint is damaged.
    """
    if (output / STATES).exists() or not (output / CHECKPOINT / MANIFEST_FILE).exists():
        return None
    stored = read_checkpoint(output / CHECKPOINT)
    if _identity(stored.settings) != _identity(settings):
        raise SettingsError(
            f"{output} holds a run that has ended, with other settings: there is nothing to resume. Leave --resume "
            "out to replace it, or choose another --output."
        )
    return stored


def check_loss(step: int, loss: float, settings: AdaptSettings) -> None:
    """Raise `SettingsError` with advice when the loss is not finite."""
    if not math.isfinite(loss):
        raise SettingsError(f"The loss is {loss} at step {step}. {_advice(settings)}")


def check_weights(weights: Iterable[Tensor], settings: AdaptSettings) -> None:
    """Raise `SettingsError` with advice when a value is not finite; one answer is asked of the device."""
    if not torch.stack([value.detach().isfinite().all() for value in weights]).all():
        raise SettingsError(f"Trained weights are not finite and were not saved. {_advice(settings)}")


def _advice(settings: AdaptSettings) -> str:
    train = settings.train
    return (
        f"Start over with a lower --learning-rate (it is {train.learning_rate:g}), more --warmup-steps (now "
        f"{train.warmup_steps}), or a lower --max-grad-norm (now {train.max_grad_norm:g})."
    )


def _identity(settings: AdaptSettings) -> dict[str, object]:
    return settings.model_dump(mode="json", exclude={"catalog": {"path"}, "backbone": {"trust_remote_code"}})
