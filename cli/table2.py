"""`sda-features table2`: one recommender on the feature sets of an ablation (the paper's Table 2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sda_features.api.repo import Repo

from .options import names, show, verb
from .ranges import FOLDER
from .recommender_options import recommender_options, training_arguments
from .version_options import open_repo


@verb(Repo.table2)
@click.option("--output", "-o", required=True, type=FOLDER, help="Folder for runs and tables.")
@click.option("--model", default="sasrec", help="Recommender, see `train`.")
@click.option(
    "--features",
    required=True,
    callback=names,
    metavar="A,B,...",
    help="The full model's feature set, then one for each ablation, see `train`.",
)
@recommender_options(Repo.table2)
def command(repo: Path, as_json: bool, **values: Any) -> None:
    """Train a recommender on each feature set of an ablation, and print the table (paper, Table 2).

    The column Δ is the mean relative change of Hit and NDCG against the full model. Writes
    OUTPUT/table2.json (manifest with every score), .md and .tex. Runs that have finished are not
    trained again.

    \b
    Example:
      sda-features table2 interactions.parquet --features sda,no_cmsa,no_moda,no_soft,vanilla -o table2
    """
    show(open_repo(repo).table2(**training_arguments(as_json), **values), as_json)
