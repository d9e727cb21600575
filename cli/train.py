"""`sda-features train`: a recommender on vectors from Feast."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from sda_features.config import EvaluationSettings, RecommenderSettings

from .options import collect, settings_options


@click.command()
@click.argument("interactions", type=click.Path(path_type=Path))
@click.option(
    "--features", default="id", show_default=True, help="id, or a feature set of the repo: sda, vanilla, ..."
)
@click.option("--repo", type=click.Path(path_type=Path), default=".", show_default=True, help="Feast repo.")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Run folder for weights and ranks.")
@click.option("--user-column", default="user_id", show_default=True, help="Column with the user id.")
@click.option("--item-column", default="item_id", show_default=True, help="Column with the item id.")
@click.option("--time-column", help="Column that orders a user's rows.  [default: timestamp or position]")
@settings_options(RecommenderSettings)
@settings_options(EvaluationSettings, prefix="eval")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as one JSON object.")
def command(
    interactions: Path,
    features: str,
    repo: Path,
    output: Path | None,
    user_column: str,
    item_column: str,
    time_column: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Train SASRec on the log INTERACTIONS and measure Hit@10 and NDCG@10 on each user's last item.

    The ranking is reported among 100 sampled negatives and over the full catalogue, for all users
    and for those whose item is in the long tail.

    \b
    Example:
      sda-features train interactions.parquet --features sda --repo shop/feature_repo -o runs/sasrec-sda
    """
    settings = RecommenderSettings.parse(**collect(RecommenderSettings, values))
    evaluation = EvaluationSettings.parse(**collect(EvaluationSettings, values, prefix="eval"))
    from sda_features.report.tables import metrics_table
    from sda_features.workflows import train_recommender

    result = train_recommender(
        interactions,
        features,
        settings,
        evaluation,
        repo=repo,
        user_column=user_column,
        item_column=item_column,
        time_column=time_column,
        progress=not as_json,
    )
    if output is not None:
        result.save(output)
    if as_json:
        click.echo(json.dumps({"features": features, **result.manifest()}))
        return
    click.echo(metrics_table({features: result.test.metrics()}))
    if output is not None:
        click.echo(f"run  {output}")
