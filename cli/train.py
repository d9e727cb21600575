"""`sda-features train`: a recommender on vectors from Feast."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from sda_features.artifacts import to_json

from .ranges import FOLDER
from .recommender_options import grid_arguments, recommender_options


@click.command()
@click.option(
    "--model",
    default="sasrec",
    show_default=True,
    help="sasrec, bert4rec, vbpr, slmrec, or one that an installed package adds.",
)
@click.option(
    "--features",
    default="id",
    show_default=True,
    help="id: no vectors; a feature set of the repo: sda, vanilla, clip, ...; one modality of it: sda-text, "
    "sda-image; both in one space: sda-shared; or a parquet file with item_id and columns of vectors.",
)
@click.option("--output", "-o", type=FOLDER, help="Run folder for weights and ranks.")
@recommender_options(seeds="0")
def command(model: str, features: str, output: Path | None, **values: Any) -> None:
    """Train a recommender on the log INTERACTIONS and measure Hit@10 and NDCG@10 on what users took next.

    The ranking is reported among 100 sampled negatives and over the full catalogue, for all users
    and for those whose item is in the long tail. A run that OUTPUT holds already is not trained
    again; several seeds lie in OUTPUT/seed-SEED.

    \b
    Example:
      sda-features train interactions.parquet --features sda --repo shop/feature_repo -o runs/sasrec-sda
    """
    arguments = grid_arguments([model], values)
    from sda_features.report.tables import metrics_table
    from sda_features.workflows.train import train_seeds

    with tempfile.TemporaryDirectory() as temporary:
        runs = train_seeds(output=output or Path(temporary), features=features, **arguments)
    if values["as_json"]:
        manifests = [run.manifest for run in runs]
        click.echo(to_json(manifests[0] if len(runs) == 1 else {"runs": manifests}))
        return
    labels = [features if len(runs) == 1 else f"{features}, seed {seed}" for seed in arguments["seeds"]]
    click.echo(
        metrics_table({label: run.manifest["metrics"] for label, run in zip(labels, runs, strict=True)})
    )
    for run in runs if output is not None else []:
        click.echo(f"run  {run.folder}")
