"""`sda-features train`: a recommender on vectors from Feast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sda_features.api.repo import Repo

from .options import show, verb
from .ranges import FOLDER
from .recommender_options import recommender_options, training_arguments
from .version_options import open_repo


@verb(Repo.train)
@click.option(
    "--model", default="sasrec", help="sasrec, bert4rec, vbpr, slmrec, or one that an installed package adds."
)
@click.option(
    "--features",
    default="id",
    help="id: no vectors; a feature set of the repo: sda, vanilla, clip, ...; one modality of it: sda-text, "
    "sda-image; both in one space: sda-shared; or a parquet file with item_id and columns of vectors.",
)
@click.option("--output", "-o", type=FOLDER, help="Run folder for weights and ranks.")
@recommender_options(Repo.train)
def command(repo: Path, as_json: bool, **values: Any) -> None:
    """Train a recommender on the log INTERACTIONS and measure Hit@10 and NDCG@10 on what users took next.

    The ranking is reported among 100 sampled negatives and over the full catalogue, for all users
    and for those whose item is in the long tail. A run that OUTPUT holds already is not trained
    again; several seeds lie in OUTPUT/seed-SEED.

    \b
    Example:
      sda-features train interactions.parquet --features sda --repo shop/feature_repo -o runs/sasrec-sda
    """
    show(open_repo(repo).train(**training_arguments(as_json), **values), as_json)
