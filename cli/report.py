"""`sda-features report`: one HTML file about a version's vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sda_features.api.vector_set import VectorSet

from .options import settings_options, show, verb
from .ranges import FiniteRange, OutputFile
from .version_options import space_options, vector_set, version_options


@verb(VectorSet.report)
@click.argument("catalog")
@space_options
@click.option("--output", "-o", type=OutputFile(), default="report.html", help="HTML file.")
@click.option(
    "--run", type=click.Path(path_type=Path), help="Folder that `adapt` wrote: curves, experts, conflict."
)
@click.option(
    "--recommender",
    "recommenders",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Run of a recommender for the table; may be repeated.",
)
@click.option(
    "--max-megabytes",
    type=FiniteRange(0, 1e9),
    default=40.0,
    help="Largest size of the pictures in the file.",
)
@settings_options(VectorSet.report)
@version_options
def command(repo: Path, feature_set: str, as_json: bool, **values: Any) -> None:
    """Write a page to look at: numbers, a map of items, neighbours side by side, training.

    The file holds everything it shows, thumbnails too, and needs no network.

    \b
    Example:
      sda-features report items.parquet --repo shop/feature_repo -o report.html
      sda-features report items.parquet --repo shop/feature_repo --version 526f --against @ --run runs/sda
    """
    show(vector_set(repo, feature_set).report(progress=not as_json, **values), as_json)
