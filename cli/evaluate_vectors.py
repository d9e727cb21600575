"""`sda-features evaluate-vectors`: what vectors know of a log, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from sda_features.config import EvaluationSettings, LogSettings, VectorEvaluationSettings

from .options import collect, settings_options
from .ranges import OutputFile
from .recommender_options import names


@click.command()
@click.argument("interactions")
@click.option(
    "--features",
    default="vanilla,sda",
    show_default=True,
    callback=names,
    metavar="A,B,...",
    help="See `train`; the last is compared with each of the others.",
)
@click.option("--repo", type=click.Path(path_type=Path), default=".", show_default=True, help="Feast repo.")
@click.option("--catalog", help="Catalogue whose items are all ranked.  [default: the items of the log]")
@click.option(
    "--product-column",
    help="Column of the catalogue that is equal for variants of one product: measure other products only.",
)
@click.option("--output", "-o", type=OutputFile(), help="Write everything to this JSON file.")
@settings_options(VectorEvaluationSettings)
@settings_options(LogSettings)
@settings_options(EvaluationSettings, prefix="eval", skip=("negatives", "seed"))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    interactions: str,
    features: list[str],
    repo: Path,
    catalog: str | None,
    product_column: str | None,
    output: Path | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Measure item vectors on the log INTERACTIONS without training: minutes, no GPU.

    Recall@k of co-occurrences (one session, the next item) by nearest vectors, and Hit@10 and NDCG@10
    of the next item by a decayed mean of the history's vectors; for all users, and for those whose
    item is in the tail or cold, that is, without any training interaction.

    \b
    Example:
      sda-features evaluate-vectors interactions.parquet --features vanilla,sda --repo shop/feature_repo
    """
    from sda_features.artifacts import write_json
    from sda_features.report.tables import differences_table, measures_table
    from sda_features.workflows.vectors import evaluate_feature_sets

    settings = VectorEvaluationSettings.parse(**collect(VectorEvaluationSettings, values))
    report = evaluate_feature_sets(
        interactions,
        features,
        settings,
        EvaluationSettings.parse(**collect(EvaluationSettings, values, prefix="eval")),
        log=LogSettings.parse(**collect(LogSettings, values)),
        repo=repo,
        catalog=catalog,
        product_column=product_column,
        echo=lambda line: click.echo(line, err=True),
    )
    ours = list(report.measures)[-1]
    differences = report.differences(ours, seed=settings.seed)
    content = report.json(differences)
    if output is not None:
        write_json(output, content)
    if as_json:
        click.echo(json.dumps(content))
        return
    click.echo(measures_table(report.metrics(), report.users()))
    groups = ("all", "tail", "cold")
    shown = [
        row
        for row in differences
        if row["users"] and row["metric"].endswith(groups) and not row["metric"].startswith("hit")
    ]
    click.echo("\n" + differences_table(shown, (ours, "other"), ("against",)))
    click.echo("\np-values are of paired t-tests over users and are not corrected for their number.")
