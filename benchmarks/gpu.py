"""Qwen2.5-VL-7B on a GPU, in under eight minutes and without its weights.

python benchmarks/gpu.py [--small] [--tiny] [--device cpu] [--minutes 8]

The model has random weights in the published configuration, made on the device: 7B, 3B with --small, a few million
parameters with --tiny. Measured are a MoDA step against PEFT's LoRA step, peak memory against the plan
of `adapt --dry-run`, a batch of 4,096 by gradient caching, encoding against a plain transformers loop
and sentence-transformers, all as a share of the measured rate of matrix products, and on a tiny model
whether a killed run and an export end in the same numbers, and recommender epochs against the CPU. A part
that fails or for which no time is left says so, and the others run. Feast is not needed.

Above the last line is a table; the last line is one JSON object, `ratio` the LoRA step over the MoDA step.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for the part that resumes a killed run

import numpy as np
import torch
from common import median, paired_ratio, report, take_turns
from gpu_checks import export_equality, recommender_epochs, resume_equality
from gpu_encoding import WORDS, encoding
from gpu_memory import expected, peak
from PIL import Image
from shapes import random_model, write_folder
from torch import Tensor

from sda_features.config import (
    AdaptSettings,
    BackboneSettings,
    LossSettings,
    ProjectionSettings,
    PromptSettings,
)
from sda_features.lvlm.backbone import Backbone, PromptBatch
from sda_features.lvlm.cmsa import cross_modal_logits
from sda_features.lvlm.encoder import PromptEncoder
from sda_features.lvlm.gradient_cache import accumulate_gradients, passes
from sda_features.lvlm.loading import pick_dtype, use_device
from sda_features.lvlm.moda import ADAPTER_NAME, adapted_layers

BATCH, ROUNDS = 32, 5


@dataclass
class Run:
    """What all parts share.

    Attributes:
        folder: configuration, tokenizer and image processor of the model.
        device, dtype, size: of the model.
        deadline: by the monotonic clock.
        table: rows of (what, value).
        figures: for the last line.
    """

    folder: Path
    device: torch.device
    dtype: torch.dtype
    size: str
    deadline: float
    table: list[tuple[str, str]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def tiny(self) -> bool:
        """Whether sizes are those of a test."""
        return self.size == "tiny"

    def row(self, what: str, value: str, **figures: Any) -> None:
        """Add to the table, and print at once: a run that is cut off has shown what it had."""
        self.table.append((what, value))
        self.figures |= figures
        print(f"{what:44} {value}", flush=True)

    def model(self, quantization: str) -> Backbone:
        """A backbone with random weights on the device."""
        settings = BackboneSettings.parse(
            model=str(self.folder), quantization=quantization, device=str(self.device), dtype=self.name
        )
        return Backbone(settings, random_model(self.folder, self.device, self.dtype, quantization))

    @property
    def name(self) -> str:
        """The dtype as settings call it."""
        return str(self.dtype).removeprefix("torch.")

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def main() -> int:
    """Run all parts."""
    arguments = parse()
    started = time.monotonic()
    device = use_device(arguments.device)
    size = "tiny" if arguments.tiny else "3B" if arguments.small else "7B"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        write_folder(folder, size, [" ".join(WORDS)])
        run = Run(folder, device, pick_dtype("auto", device), size, started + 60 * arguments.minutes)
        run.row("device", device_name(device), device=device_name(device), size=size, dtype=run.name)
        run.row("packages", ", ".join(f"{of} {version(of)}" for of in ("torch", "transformers", "peft")))
        rate(run)
        parts: dict[str, Callable[[Run], None]] = {
            "steps": steps,
            "encoding": encoding,
            "resume": resume_equality,
            "export": export_equality,
            "recommenders": recommender_epochs,
            "large batch": large_batch,
        }
        failed = [name for name, part in parts.items() if not attempt(run, name, part)]
    seconds = time.monotonic() - started
    print(f"\n{len(run.table)} rows in {seconds:.0f} s")
    report(
        "gpu",
        against=f"LoRA of peft {version('peft')}, same rank and targets",
        ratio=run.figures.pop("ratio", float("nan")),
        failed=failed,
        seconds=round(seconds),
        **run.figures,
    )
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="Qwen2.5-VL-3B instead of 7B")
    parser.add_argument(
        "--tiny", action="store_true", help="a few million parameters: the test of this script"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float, default=8, help="no part begins later")
    return parser.parse_args()


def attempt(run: Run, name: str, part: Callable[[Run], None]) -> bool:
    """Run a part; whether it ended well."""
    if time.monotonic() > run.deadline:
        run.row(name, "not run: no time left")
        return False
    try:
        part(run)
    except Exception as error:  # the other parts must run
        traceback.print_exc(file=sys.stderr)
        run.row(name, f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return False
    finally:
        gc.collect()
        if run.device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def device_name(device: torch.device) -> str:
    """The card, or the CPU."""
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads"
    )


def rate(run: Run) -> None:
    """FLOP/s of a large matrix product in the model's dtype."""
    size = 8192 if run.device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=run.device, dtype=run.dtype) for _ in range(2))

    def job() -> None:
        a @ b
        run.wait()

    seconds = median(take_turns({"product": job}, rounds=10, warmup=3)["product"])
    flops = 2 * size**3 / seconds
    run.row(f"matrix product of {size}, {run.name}", f"{flops / 1e12:.2f} TFLOP/s", matmul_flops=flops)


def prompts_of(run: Run, backbone: Backbone, count: int) -> tuple[PromptBatch, PromptBatch]:
    """Texts of about a hundred words and pictures of 256 pixels: the size of a shop's items."""
    random = np.random.default_rng(0)
    length, side = (12, 56) if run.tiny else (100, 256)
    texts = [" ".join(random.choice(WORDS, length)) for _ in range(count)]
    pictures = [
        Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)
    ]
    settings = PromptSettings()
    return (
        backbone.collate([backbone.text_tokens(text) for text in texts], "text"),
        backbone.collate([backbone.image_tokens(picture, settings) for picture in pictures], "image"),
    )


def adapted(run: Run, quantization: str) -> PromptEncoder:
    """An encoder that trains; B is random, for B = 0 sends no gradient to A and the gates."""
    settings = settings_of(run, quantization)
    encoder = PromptEncoder(run.model(quantization), settings.adapter, ProjectionSettings())
    for layer in adapted_layers(encoder.model).values():
        torch.nn.init.normal_(layer.lora_B[ADAPTER_NAME].weight, std=0.01)
    return encoder.train()


def settings_of(run: Run, quantization: str, **train: Any) -> AdaptSettings:
    """Defaults, for this model."""
    backbone = {
        "model": str(run.folder),
        "quantization": quantization,
        "device": str(run.device),
        "dtype": run.name,
    }
    return AdaptSettings.parse(catalog={"path": "none"}, backbone=backbone, train=train)


@contextlib.contextmanager
def as_lora(encoder: PromptEncoder) -> Iterator[None]:
    """The same factors as PEFT's own LoRA: no gate."""
    gates, encoder.gates = encoder.gates, None
    layers = list(adapted_layers(encoder.model).values())
    variants = [layer.lora_variant.pop(ADAPTER_NAME) for layer in layers]
    try:
        yield
    finally:
        encoder.gates = gates
        for layer, variant in zip(layers, variants, strict=True):
            layer.lora_variant[ADAPTER_NAME] = variant


def contrast(text: Tensor, image: Tensor) -> Any:
    """A loss over the batch; which one does not matter for time and memory."""
    from sda_features.lvlm.cmsa import LossOutput

    unit = (torch.nn.functional.normalize(of.float(), dim=1) for of in (text, image))
    student = cross_modal_logits(*unit, LossSettings().temperature)
    own = torch.arange(len(student), device=student.device)
    cross_entropy = torch.nn.functional.cross_entropy
    loss = (cross_entropy(student, own) + cross_entropy(student.T, own)) / 2
    return LossOutput(loss, loss.detach(), loss.detach())


def steps(run: Run) -> None:
    """A MoDA step against a LoRA step, over bfloat16 and over NF4 weights, and its memory against the plan."""
    for quantization in ("none", "nf4"):
        encoder = adapted(run, quantization)
        on_gpu = run.device.type == "cuda"
        if on_gpu:
            encoder.enable_gradient_checkpointing()
        count = 4 if run.tiny else BATCH
        batches = [batch.to(run.device) for batch in prompts_of(run, encoder.backbone, count)]
        optimizer = torch.optim.AdamW(encoder.trainable().values(), lr=1e-5, fused=True if on_gpu else None)

        def step(
            encoder: PromptEncoder = encoder, batches: list[PromptBatch] = batches, optimizer: Any = optimizer
        ) -> None:
            optimizer.zero_grad(set_to_none=True)
            accumulate_gradients(encoder, iter(batches), 2, contrast)
            optimizer.step()
            run.wait()

        def lora(encoder: PromptEncoder = encoder, step: Callable[[], None] = step) -> None:
            with as_lora(encoder):
                step()

        step()
        measured = peak(run, encoder, step)
        train = {"batch_size": count, "gradient_checkpointing": on_gpu}
        planned = expected(settings_of(run, quantization, **train), run, prompts_of)
        seconds = take_turns({"moda": step, "lora": lora}, rounds=2 if run.tiny else ROUNDS)
        ratio = paired_ratio(seconds["lora"], seconds["moda"])
        found = {name: round(median(of), 4) for name, of in seconds.items()}
        run.row(
            f"step of {count}, {quantization}: MoDA",
            f"{found['moda']:.3f} s, LoRA step / MoDA step {ratio:.3f}",
        )
        run.row(
            f"step of {count}, {quantization}: memory",
            f"{measured / 2**30:.3f} GiB, plan {planned / 2**30:.3f} GiB, plan / measured {planned / measured:.2f}",
        )
        if quantization == "none" or "ratio" not in run.figures:
            run.figures["ratio"] = ratio
        run.figures[f"step_{quantization}"] = {
            **found,
            "ratio": round(ratio, 3),
            "peak": measured,
            "plan": planned,
        }
        del encoder, batches, optimizer, step, lora
        gc.collect()


def large_batch(run: Run) -> None:
    """One step on a large batch by gradient caching; smaller if the time would not do."""
    encoder = adapted(run, "nf4")
    encoder.enable_gradient_checkpointing()
    micro = 4 if run.tiny else BATCH
    text, image = prompts_of(run, encoder.backbone, micro)

    def step(items: int) -> float:
        count = items // micro
        order = [text] * count + [image] * count
        began = time.monotonic()
        accumulate_gradients(encoder, iter(order * passes(2 * count)), 2 * count, contrast)
        run.wait()
        return time.monotonic() - began

    step(micro)
    each = step(2 * micro) / (2 * micro)
    wanted = 16 if run.tiny else 4096
    able = int((run.deadline - time.monotonic()) / each) // micro * micro
    items = min(wanted, max(2 * micro, able))
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = step(items)
    memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if run.device.type == "cuda" else ""
    less = "" if items == wanted else f" (not {wanted}: no time)"
    run.row(
        f"batch of {items} in micro batches of {micro}, nf4",
        f"{seconds:.1f} s, {items / seconds:.1f} items/s{memory}{less}",
        large_batch={"items": items, "seconds": round(seconds, 2)},
    )


if __name__ == "__main__":
    sys.exit(main())
