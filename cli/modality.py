"""`sda-features modality`: text, image, and both (the paper's Figure 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .ranges import FOLDER
from .recommender_options import grid_arguments, recommender_options, show_tables


@click.command()
@click.option("--output", "-o", required=True, type=FOLDER, help="Folder for runs and tables.")
@click.option("--model", default="slmrec", show_default=True, help="Recommender, see `train`.")
@click.option("--feature-set", default="sda", show_default=True, help="Feature set of the repo.")
@recommender_options(seeds="0,1,2")
def command(output: Path, model: str, feature_set: str, **values: Any) -> None:
    """Train a recommender on no vectors, on texts, on images and on both, and print the table (paper, Fig. 3).

    Writes OUTPUT/modality.json (manifest with every score), .md and .tex. Runs that have finished are
    not trained again.

    \b
    Example:
      sda-features modality interactions.parquet --model slmrec --repo shop/feature_repo -o modality
    """
    arguments = grid_arguments([model], values)
    features = ["id", f"{feature_set}-text", f"{feature_set}-image", feature_set]
    show_tables("modality", output, features, arguments, ours=-1, as_json=values["as_json"])
