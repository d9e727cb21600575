"""`sda-features modality`: text, image, and both (the paper's Figure 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sda_features.api.repo import Repo

from .options import show, verb
from .ranges import FOLDER
from .recommender_options import recommender_options, training_arguments
from .version_options import open_repo


@verb(Repo.modality)
@click.option("--output", "-o", required=True, type=FOLDER, help="Folder for runs and tables.")
@click.option("--model", default="slmrec", help="Recommender, see `train`.")
@click.option("--feature-set", default="sda", help="Feature set of the repo.")
@recommender_options(Repo.modality)
def command(repo: Path, as_json: bool, **values: Any) -> None:
    """Train a recommender on no vectors, on texts, on images and on both, and print the table (paper, Fig. 3).

    Writes OUTPUT/modality.json (manifest with every score), .md and .tex. Runs that have finished are
    not trained again.

    \b
    Example:
      sda-features modality interactions.parquet --model slmrec --repo shop/feature_repo -o modality
    """
    show(open_repo(repo).modality(**training_arguments(as_json), **values), as_json)
