"""A training step of MoDA against PEFT's LoRA of the same rank and targets, and against a loop over experts.

Forward, backward and optimiser step on text sequences, over float32 weights and over NF4 ones. The
three models hold the same weights; before timing, MoDA and the loop must give the same gradients.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other drown small differences

import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from common import options, paired_ratio, report, take_turns
from peft.tuners.lora import LoraLayer
from torch import Tensor

from sda_features.config import AdapterSettings, BackboneSettings, ProjectionSettings
from sda_features.demo.model import build_tiny_model
from sda_features.lvlm.backbone import Backbone, PromptBatch
from sda_features.lvlm.encoder import PromptEncoder
from sda_features.lvlm.moda import ADAPTER_NAME, GatedVariant, ModalityGates, adapted_layers

FACTORS = {"rank": 8, "experts": 4, "alpha": 32.0, "dropout": 0.1}


class ExpertLoop(GatedVariant):
    """Eq. 6 and 7 as they are written: each layer evaluates its gate and sums its experts one by one."""

    def forward(
        self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        """W_0 x + sum_i omega_i B_i A_i x."""
        gates: ModalityGates = self.gates
        weight, bias = gates.weight[self.position], gates.bias[self.position]
        omega = torch.softmax(weight @ gates.embedding[0] + bias, dim=0)  # [E], modality "text"
        a, b = module.lora_A[active_adapter].weight, module.lora_B[active_adapter].weight
        x = module.lora_dropout[active_adapter](x)
        width = gates.rank // len(omega)
        for i in range(len(omega)):
            rows = slice(i * width, (i + 1) * width)
            result = result + gates.scaling * omega[i] * (x @ a[rows].T @ b[:, rows].T)
        return result


def main() -> None:
    """Measure and print."""
    arguments = options(__doc__ or "")
    layers, sequences, rounds = (4, 8, 9) if arguments.quick else (6, 16, 15)
    words = [f"item {number} of brand {number % 7} in aisle {number % 31}" for number in range(400)]
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        build_tiny_model(Path(folder) / "model", words, hidden_size=512, layers=layers, vocabulary=2048)
        for quantization in ("none", "nf4"):
            found[quantization] = measure(
                Path(folder) / "model", quantization, words, layers, sequences, rounds
            )
    report(
        "adapter_step",
        against=f"LoRA of peft {version('peft')}, same rank and targets",
        ratio=min(figures["lora / moda"] for figures in found.values()),
        details=found,
    )


def measure(
    model: Path, quantization: str, words: list[str], layers: int, sequences: int, rounds: int
) -> dict[str, float]:
    """Ratios of a step's time, and what was measured."""
    encoders = {kind: make_encoder(model, quantization, kind) for kind in ("moda", "lora", "loop")}
    backbone = encoders["moda"].backbone
    prompts = ["; ".join(words[start : start + 8]) for start in range(0, 8 * sequences, 8)]
    batch = backbone.collate([backbone.text_tokens(prompt) for prompt in prompts], "text")
    check_equal(encoders, batch)
    steps = {kind: make_step(encoder, batch) for kind, encoder in encoders.items()}
    seconds = take_turns(steps, rounds=rounds, warmup=2, clock=time.process_time)
    tokens = int(batch.lengths.sum())
    print(
        f"\n{quantization}: width 512, {layers} layers, {sequences} sequences, {tokens} tokens, {rounds} rounds"
    )
    for kind, values in seconds.items():
        print(f"  {kind:5} {1000 * sorted(values)[len(values) // 2]:8.1f} CPU ms a step")
    ratios = {
        f"{kind} / moda": round(paired_ratio(seconds[kind], seconds["moda"]), 3) for kind in ("lora", "loop")
    }
    print("  " + ", ".join(f"{name} {value}" for name, value in ratios.items()))
    return ratios


def make_encoder(model: Path, quantization: str, kind: str) -> PromptEncoder:
    """An encoder of its own; B is random, for a fresh B = 0 sends no gradient to A and the gates."""
    torch.manual_seed(0)
    settings = BackboneSettings.parse(model=str(model), quantization=quantization, device="cpu")
    adapter = AdapterSettings.parse(kind="lora" if kind == "lora" else "moda", **FACTORS)
    encoder = PromptEncoder(Backbone(settings), adapter, ProjectionSettings())
    for position, layer in enumerate(adapted_layers(encoder.model).values()):
        torch.manual_seed(position)
        torch.nn.init.normal_(layer.lora_B[ADAPTER_NAME].weight, std=0.02)
        if kind == "loop":
            layer.lora_variant[ADAPTER_NAME] = ExpertLoop(encoder.gates, position)  # type: ignore[arg-type]
    return encoder.train()


def check_equal(encoders: dict[str, PromptEncoder], batch: PromptBatch) -> None:
    """MoDA and the loop over experts have the same gradients, LoRA as many factors."""
    gradients = {}
    for kind in ("moda", "loop"):
        torch.manual_seed(1)
        encoders[kind](batch).square().sum().backward()
        gradients[kind] = {name: value.grad for name, value in encoders[kind].trainable().items()}
    for name, gradient in gradients["moda"].items():
        # Both draw one dropout mask a layer in the same order.
        torch.testing.assert_close(gradient, gradients["loop"][name], rtol=1e-3, atol=1e-3)
    shapes = [
        {
            name: value.shape
            for name, value in encoders[kind].trainable().items()
            if name.endswith((".A", ".B"))
        }
        for kind in ("moda", "lora")
    ]
    if shapes[0] != shapes[1]:
        raise SystemExit("MoDA and LoRA do not have the same factors")


def make_step(encoder: PromptEncoder, batch: PromptBatch) -> Callable[[], None]:
    """One training step on a fixed batch."""
    optimizer = torch.optim.AdamW(encoder.trainable().values(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        encoder(batch).square().mean().backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
