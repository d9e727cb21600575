"""`sda-features adapt`: train an adapter on a catalogue."""

from __future__ import annotations

from typing import Any

import click

from sda_features.api import functions

from .options import JSON, settings_options, show, verb
from .ranges import FOLDER


@verb(functions.adapt)
@click.argument("catalog")
@click.option("--output", "-o", type=FOLDER, required=True, help="Run folder to write.")
@settings_options(functions.adapt)
@click.option("--dry-run", is_flag=True, help="Say what the run would need and what fits; needs no weights.")
@click.option("--card", help="With --dry-run: plan for this GPU, e.g. A100-80, RTX4090 or 24GiB.")
@click.option("--resume", is_flag=True, help="Go on from the newest saved state of OUTPUT.")
@JSON
def command(as_json: bool, **values: Any) -> None:
    """Train MoDA adapters on the items of CATALOG and write OUTPUT/checkpoint.

    CATALOG is a parquet, JSONL or CSV file with an id column, text columns and an image column, as a
    path or an fsspec URL.
    Items that lack a text or a picture stay out of training and are listed in
    OUTPUT/catalog_report.jsonl.

    \b
    Example:
      sda-features adapt items.parquet --model Qwen/Qwen2.5-VL-7B-Instruct -o runs/sda
    """
    show(functions.adapt(progress=not as_json, **values), as_json)
