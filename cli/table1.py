"""`sda-features table1`: recommenders by feature sets, overall and in the tail (the paper's Table 1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .ranges import FOLDER
from .recommender_options import MODELS, grid_arguments, names, recommender_options, show_tables


@click.command()
@click.option("--output", "-o", required=True, type=FOLDER, help="Folder for runs and tables.")
@click.option(
    "--models", default=MODELS, show_default=True, callback=names, metavar="A,B,...", help="Recommenders."
)
@click.option(
    "--features",
    default="id,clip,vanilla,sda",
    show_default=True,
    callback=names,
    metavar="A,B,...",
    help="See `train`; the last is compared with each of the others.",
)
@recommender_options(seeds="0,1,2")
def command(output: Path, models: list[str], features: list[str], **values: Any) -> None:
    """Train every recommender on every feature set with every seed, and print the table (paper, Table 1).

    One table for each ranking. Writes OUTPUT/table1.json (manifest with every score), .md and .tex.
    A run that has finished is not trained again, so a stopped command goes on where it was.

    \b
    Example:
      sda-features table1 interactions.parquet --features id,vanilla,sda --repo shop/feature_repo -o table1
    """
    arguments = grid_arguments(models, values)
    show_tables("table1", output, features, arguments, ours=-1, as_json=values["as_json"])
