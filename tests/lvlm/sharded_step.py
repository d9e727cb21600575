"""One optimiser step's gradients for every loss, by this process's share of a batch: run by test_processes.py."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from sda_features.config import AdapterSettings, LossSettings, ProjectionSettings
from sda_features.lvlm.backbone import Backbone
from sda_features.lvlm.cmsa import LossOutput, alignment_loss
from sda_features.lvlm.encoder import PromptEncoder
from sda_features.lvlm.gradient_cache import accumulate_gradients
from sda_features.lvlm.processes import Processes
from tests.lvlm.conftest import randomise
from tests.lvlm.test_gradient_cache import EVERY_TERM, batches, known, planned
from tests.shop import on_cpu

LOSSES = {
    "infonce": LossSettings.parse(kind="infonce"),
    "moving teacher": LossSettings.parse(kind="cmsa", teacher="moving", centre=True),
    "fixed teacher": LossSettings.parse(kind="cmsa", teacher="fixed"),
    "structure": LossSettings.parse(kind="infonce", structure_weight=1.5),
    "behaviour": LossSettings.parse(kind="infonce", behaviour_weight=0.5),
    "every term": EVERY_TERM,
}
# loss, items encoded at a time: fewer than a process has means gradient caching
CASES = [*((loss, 8) for loss in LOSSES), ("every term", 3)]
QUANTIZATIONS = ("none", "nf4")
ITEMS = 8


def key(quantization: str, loss: str, micro: int) -> str:
    return f"{quantization}, {loss}, {micro}"


def steps(model: Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Case -> loss, number of processes, and the gradient of every trained parameter."""
    processes = Processes("cpu")
    for quantization in QUANTIZATIONS:
        torch.manual_seed(0)
        settings = on_cpu(model, quantization=quantization, dtype="float32")
        encoder = PromptEncoder(Backbone(settings), AdapterSettings.parse(dropout=0.0), ProjectionSettings())
        randomise(encoder).train()
        for loss, micro in CASES:
            encoder.zero_grad()
            result = accumulate_gradients(
                encoder,
                *planned(batches(encoder, micro, processes.share(np.arange(ITEMS)))),
                partial(_loss, loss),
                globally=processes.all_gather_with_grad,
            )
            processes.sum_gradients(encoder.trainable().values())
            found = {name: value.grad for name, value in encoder.trainable().items()}
            measured = {"loss": result.loss, "entropy": result.teacher_entropy, "spread": result.spread}
            measured["count"] = torch.tensor(processes.count)
            yield key(quantization, loss, micro), measured | found


def _loss(name: str, text: Tensor, image: Tensor) -> LossOutput:
    told = known(len(text))
    if name not in ("behaviour", "every term"):
        told = replace(told, partners=None)
    return alignment_loss(text, image, LOSSES[name], 0.07, told)


if __name__ == "__main__":
    made = {
        f"{case}|{name}": value.clone().contiguous()
        for case, step in steps(Path(sys.argv[1]))
        for name, value in step.items()
    }
    processes = Processes("cpu")
    if processes.is_main:
        save_file(made, sys.argv[2])
    processes.wait()
