"""`sda-features diagnose`: gradient conflict between text and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sda_features.api import functions
from sda_features.config import MANY

from .options import JSON, names, settings_options, show, verb
from .ranges import COUNT, FOLDER, SEEDS, Device


@verb(functions.diagnose)
@click.argument("checkpoints", metavar="[CHECKPOINT]...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--catalog",
    metavar="PATH_OR_URL",
    required=True,
    help="Catalogue to take items from; a path or an fsspec URL.",
)
@click.option(
    "--adapter",
    "kinds",
    multiple=True,
    type=click.Choice(["moda", "lora"]),
    help="Also a fresh adapter of this kind over --model, untrained; may be repeated.",
)
@click.option("--model", help="Base model; with checkpoints only if it moved.")
@click.option(
    "--quantization", type=click.Choice(["nf4", "int8", "none"]), help="Default: as in training, or nf4."
)
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), help="Activations.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that ships with the model.")
@click.option("--device", type=Device(), help="Torch device.")
@click.option(
    "--modules",
    default="q_proj,k_proj",
    callback=names,
    metavar="A,B,...",
    help="Linears whose B is examined.",
)
@click.option("--items", type=click.IntRange(2, MANY), default=256, help="Items to use.")
@click.option("--batch-size", type=click.IntRange(2, MANY), default=64, help="Items of one loss.")
@click.option(
    "--micro-batch-size",
    type=COUNT,
    default=16,
    help="Items encoded at a time; bounds memory, same gradients.",
)
@click.option("--seed", type=SEEDS, default=0, help="Seed of the choice of items and of fresh adapters.")
@settings_options(functions.diagnose)
@click.option("--output", "-o", type=FOLDER, help="Folder for conflict.json, .md and .svg.")
@JSON
def command(as_json: bool, **values: Any) -> None:
    """Measure whether text and pictures pull an adapter the same way (paper, section 3.3.3).

    A negative cosine between the gradients of the two modalities is a conflict: a step that helps
    one harms the other. Each CHECKPOINT is measured under its own loss and prompts, all on the same
    items.

    \b
    Example:
      sda-features diagnose runs/moda/checkpoint runs/lora/checkpoint --catalog items.parquet
      sda-features diagnose --adapter moda --adapter lora --model Qwen/Qwen2.5-VL-7B-Instruct --catalog items.parquet
    """
    show(functions.diagnose(progress=not as_json, **values), as_json)
