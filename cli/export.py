"""`sda-features export`: a checkpoint as stock PEFT adapters and merged models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sda_features.api import functions

from .options import JSON, show, verb
from .ranges import FOLDER


@verb(functions.export)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=FOLDER, required=True, help="Folder to write.")
@click.option(
    "--for",
    "target",
    type=click.Choice(["conditional-generation", "base"]),
    default="conditional-generation",
    help="Class to load over: AutoModelForImageTextToText, as vLLM does, or AutoModel.",
)
@click.option("--model", help="Base model, if it moved since training.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that ships with the model.")
@click.option("--merged", is_flag=True, help="Also write the base model with each adapter merged in.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    help="Dtype of merged weights; auto: the base model's.",
)
@JSON
def command(as_json: bool, **values: Any) -> None:
    """Write CHECKPOINT as two PEFT LoRA adapters, OUTPUT/text and OUTPUT/image.

    PEFT, vLLM and whatever else reads LoRA adapters can load them over the unquantised base model;
    see docs/export.md.

    \b
    Example:
      sda-features export runs/sda/checkpoint -o adapters
      sda-features export runs/sda/checkpoint -o adapters --merged --dtype bfloat16
    """
    show(functions.export(**values), as_json)
