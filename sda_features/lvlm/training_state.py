"""Where a run stands: everything that a killed run needs to go on as if nothing had happened.

    states/step-00000250/   tensors.safetensors (parameters, AdamW moments, generators), state.json

A state is written whole or not at all. What follows from the step number alone, the learning rate
and the order of the data, is not stored.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sda_features.artifacts import atomic_folder, sha256_files, write_json
from sda_features.errors import CheckpointError, foreign
from sda_features.lvlm.processes import Processes

TENSORS, STATE = "tensors.safetensors", "state.json"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps for a parameter


@dataclass
class TrainingState:
    """How far a run has come.

    Attributes:
        best_step: step of the best validation; 0 before the first.
        best_score: what `TrainSettings.validate_on` names, at that step.
        stale: validations since then.
        best_weights: parameters at that step.
    """

    step: int = 0
    best_step: int = 0
    best_score: float = -1.0
    stale: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def save_state(
    folder: Path,
    standing: TrainingState,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    identity: dict[str, Any],
    processes: Processes,
    keep: int,
) -> None:
    """Write `folder`/step-N and delete all but the newest `keep` states; every process must call it.

    A resumed run must have the same `identity`, what the run depends on.
    """
    tensors = {f"parameter.{name}": value.detach() for name, value in parameters.items()}
    tensors |= {f"best.{name}": value for name, value in standing.best_weights.items()}
    for name, parameter in parameters.items():
        tensors |= {f"{moment}.{name}": optimizer.state[parameter][moment] for moment in MOMENTS}
    tensors["generators.cpu"] = processes.gather(torch.get_rng_state()[None])
    if torch.cuda.is_available():
        tensors["generators.cuda"] = processes.gather(torch.cuda.get_rng_state()[None])
    if processes.is_main:
        numbers = {name: value for name, value in vars(standing).items() if name != "best_weights"}
        with atomic_folder(folder / f"step-{standing.step:08d}") as temporary:
            save_file(
                {name: value.cpu().contiguous() for name, value in tensors.items()}, temporary / TENSORS
            )
            tensors_sha256 = sha256_files([temporary / TENSORS])
            state = {"standing": numbers, "identity": identity, "tensors_sha256": tensors_sha256}
            write_json(temporary / STATE, state)
        for old in saved_states(folder)[:-keep]:
            shutil.rmtree(old)


def saved_states(folder: Path) -> list[Path]:
    """Complete states, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def restore_state(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    identity: dict[str, Any],
    processes: Processes,
) -> TrainingState:
    """Bring parameters, optimiser and random generators back to the newest state of `folder`.

    Returns:
        Where the run stands; a fresh `TrainingState` when no state was saved.

    Raises:
        CheckpointError: the run had other settings, data, base model or number of processes, or the
            state is damaged.
    """
    states = saved_states(folder)
    if not states:
        return TrainingState()
    damaged = f"{states[-1]} is damaged. Delete that folder and run again with --resume: " + (
        "it goes on from the state before" if len(states) > 1 else "it starts over, no other state is left"
    )
    with foreign(CheckpointError, damaged):
        saved = json.loads((states[-1] / STATE).read_text(encoding="utf-8"))
        if sha256_files([states[-1] / TENSORS]) != saved["tensors_sha256"]:
            raise ValueError(f"{TENSORS} does not match the hash in {STATE}")
        standing, tensors = TrainingState(**saved["standing"]), load_file(states[-1] / TENSORS)
        saved["identity"] = dict(saved["identity"])
    if odd := sorted(name for name in identity if saved["identity"].get(name) != identity[name]):
        raise CheckpointError(
            f"{folder.parent} cannot be resumed: its {', '.join(odd)} differ from this command's. Give the "
            "arguments of the first run, or start over in another --output."
        )
    fused = optimizer.defaults.get("fused")
    with foreign(CheckpointError, damaged), torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"parameter.{name}"])
            moments = {moment: tensors[f"{moment}.{name}"] for moment in MOMENTS}
            optimizer.state[parameter] = {
                moment: value if moment == "step" and not fused else value.to(parameter.device)
                for moment, value in moments.items()
            }
            if f"best.{name}" in tensors:
                standing.best_weights[name] = tensors[f"best.{name}"]
    torch.set_rng_state(tensors["generators.cpu"][processes.rank])
    if "generators.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["generators.cuda"][processes.rank])
    return standing
