"""Memory of one contrastive step over a large batch, cached in micro batches, against a plain step of 16.

Each step runs in a process of its own, which tells its peak resident memory. A smaller model, whose
plain step over the whole batch fits into memory, shows that both ways give the same gradients.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import options, peak_memory, report
from PIL import Image
from safetensors.torch import load_file, save_file

from sda_features.catalog.rows import Catalog
from sda_features.config import (
    AdapterSettings,
    BackboneSettings,
    CatalogSettings,
    LossSettings,
    ProjectionSettings,
    PromptSettings,
)
from sda_features.demo.model import build_tiny_model
from sda_features.lvlm.backbone import Backbone
from sda_features.lvlm.cmsa import BaseRelations, alignment_loss
from sda_features.lvlm.encoder import PromptEncoder
from sda_features.lvlm.gradient_cache import accumulate_gradients, passes
from sda_features.lvlm.moda import adapted_layers
from sda_features.lvlm.training_data import TrainingPairs, write_pairs

MIB = 1 << 20
SMALL = 16  # items of the plain step, and of a micro batch


def main() -> None:
    """Measure and print."""
    child = ("--child", {"nargs": 4, "metavar": ("FOLDER", "MODEL", "ITEMS", "MICRO"), "default": None})
    arguments = options(__doc__ or "", child)
    if arguments.child:
        step(*arguments.child)
        return
    items = 256 if arguments.quick else 2048
    sizes = {"large": (256, 4), "small": (64, 2)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, items)
        for model, (width, layers) in sizes.items():
            texts = [f"item {number}" for number in range(100)]
            build_tiny_model(folder / model, texts, hidden_size=width, layers=layers)
        plain = run(folder, "large", SMALL, SMALL)
        cached = run(folder, "large", items, SMALL)
        print("\nwidth 256, 4 layers, pictures of 84 x 84 pixels, one thread, float32")
        print(f"{'step':32} {'peak':>9} {'above the loaded model':>24} {'seconds':>9}")
        for title, found in ((f"{SMALL} items, plain", plain), (f"{items} items in {SMALL}s", cached)):
            above = found["peak"] - found["loaded"]
            print(
                f"{title:32} {found['peak'] / MIB:5.0f} MiB {above / MIB:20.0f} MiB {found['seconds']:9.1f}"
            )
        error = gradient_error(folder, items)
    print(f"largest relative difference of a gradient, {items} items, cached to plain: {error:.1e}")
    report(
        "gradient_cache",
        against=f"a plain step of {SMALL} items",
        ratio=plain["peak"] / cached["peak"],
        items=items,
        activations_ratio=round((plain["peak"] - plain["loaded"]) / (cached["peak"] - cached["loaded"]), 3),
        gradient_error=float(f"{error:.2e}"),
    )


def run(folder: Path, model: str, items: int, micro: int) -> dict[str, float]:
    """Take one step in a fresh process."""
    command = [sys.executable, __file__, "--child", str(folder), model, str(items), str(micro)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def gradient_error(folder: Path, items: int) -> float:
    """Largest |g - g'| / |g| over the trained tensors of the small model."""
    gradients = []
    for micro in (items, SMALL):
        run(folder, "small", items, micro)
        gradients.append(load_file(folder / "gradients.safetensors"))
    plain, cached = gradients
    if not all(value.norm() > 0 for value in plain.values()):
        raise SystemExit("vacuous: a gradient is zero")
    return max(((cached[name] - value).norm() / value.norm()).item() for name, value in plain.items())


def step(folder_name: str, model: str, count: str, micro_size: str) -> None:
    """One step of `count` items; prints its memory and saves its gradients."""
    folder, items, micro = Path(folder_name), int(count), int(micro_size)
    torch.manual_seed(0)
    settings = BackboneSettings.parse(model=str(folder / model), quantization="none", device="cpu")
    encoder = PromptEncoder(Backbone(settings), AdapterSettings.parse(dropout=0.0), ProjectionSettings())
    for layer in adapted_layers(encoder.model).values():
        torch.nn.init.normal_(next(layer.lora_B.parameters()), std=0.1)  # B = 0 sends no gradient to A
    encoder.train()
    pairs, indices = TrainingPairs(folder / "pairs.arrow"), np.arange(items)
    micro_batches = 2 * -(-items // micro)
    batches = (
        batch
        for _ in range(passes(micro_batches))
        for batch in pairs.micro_batches(indices, encoder.backbone, PromptSettings(), micro)
    )
    loaded, started = psutil.Process().memory_info().rss, time.perf_counter()
    accumulate_gradients(
        encoder,
        batches,
        micro_batches,
        lambda text, image: alignment_loss(
            text, image, LossSettings(teacher="moving", structure_weight=0), 0.07, BaseRelations(len(text))
        ),
    )
    seconds, peak = time.perf_counter() - started, peak_memory()
    gradients = {name: value.grad for name, value in encoder.trainable().items() if value.grad is not None}
    save_file(gradients, folder / "gradients.safetensors")
    print(json.dumps({"peak": peak, "loaded": loaded, "seconds": seconds}))


def write_data(folder: Path, items: int) -> None:
    """A catalogue of short texts and noise pictures, read into training pairs as `adapt` does."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(items):
        stream = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (84, 84, 3), np.uint8)).save(stream, "PNG")
        title = f"item {number} of brand {number % 7}, shelf {number % 31}"
        rows.append({"item_id": str(number), "title": title, "image": stream.getvalue()})
    pq.write_table(pa.Table.from_pylist(rows), folder / "items.parquet")
    catalog = Catalog(CatalogSettings.parse(path=folder / "items.parquet"))
    write_pairs(catalog, PromptSettings(), folder / "pairs.arrow", progress=False)


if __name__ == "__main__":
    main()
