"""`sda-features evaluate`: the metrics of a saved run, also under another protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sda_features.artifacts import to_json
from sda_features.config import EvaluationSettings, LogSettings

from .options import given, settings_options


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--interactions",
    help="The log the run was trained on; needed to rank again.",
)
@settings_options(
    EvaluationSettings, skip=("split", "cold_share", "validation_from", "test_from"), defaults=False
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(run: Path, interactions: str | None, as_json: bool, **values: Any) -> None:
    """Print the metrics of the run folder RUN, or rank its test items again under another protocol.

    Without options these are the metrics that were stored. A cut-off, a number of negatives, their
    seed or another limit of the tail rank again, from the factors in the run folder: no training, no
    vectors, but the same log. Nothing is written.

    \b
    Example:
      sda-features evaluate runs/sasrec-sda --negatives 99 --interactions interactions.parquet
    """
    from sda_features.errors import SettingsError
    from sda_features.evaluation.run_files import read_manifest
    from sda_features.report.tables import metrics_table

    manifest = read_manifest(run)
    metrics, protocol = manifest["metrics"], manifest["evaluation"]
    changed = given(EvaluationSettings, values)
    if changed:
        from sda_features.recommenders.rank_again import rank_again
        from sda_features.workflows.train import read_log

        if interactions is None:
            raise SettingsError(
                "To rank again, name the log with --interactions: it says what users have seen."
            )
        settings = EvaluationSettings.parse(**protocol | changed)
        log = read_log(interactions, LogSettings.parse(**manifest.get("log", {})))
        metrics, protocol = rank_again(run, log, settings).metrics(), settings.model_dump(mode="json")
    if as_json:
        click.echo(to_json({"run": str(run), "evaluation": protocol, "metrics": metrics}))
        return
    click.echo(metrics_table({manifest.get("features", run.name): metrics}))
