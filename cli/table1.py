"""`sda-features table1`: recommenders by feature sets, overall and in the tail (the paper's Table 1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sda_features.api.repo import MODELS, Repo

from .options import names, show, verb
from .ranges import FOLDER
from .recommender_options import recommender_options, training_arguments
from .version_options import open_repo


@verb(Repo.table1)
@click.option("--output", "-o", required=True, type=FOLDER, help="Folder for runs and tables.")
@click.option("--models", default=",".join(MODELS), callback=names, metavar="A,B,...", help="Recommenders.")
@click.option(
    "--features",
    default="id,clip,vanilla,sda",
    callback=names,
    metavar="A,B,...",
    help="See `train`; the last is compared with each of the others.",
)
@recommender_options(Repo.table1)
def command(repo: Path, as_json: bool, **values: Any) -> None:
    """Train every recommender on every feature set with every seed, and print the table (paper, Table 1).

    One table for each ranking. Writes OUTPUT/table1.json (manifest with every score), .md and .tex.
    A run that has finished is not trained again, so a stopped command goes on where it was.

    \b
    Example:
      sda-features table1 interactions.parquet --features id,vanilla,sda --repo shop/feature_repo -o table1
    """
    show(open_repo(repo).table1(**training_arguments(as_json), **values), as_json)
