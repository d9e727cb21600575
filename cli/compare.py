"""`sda-features compare`: do two runs differ by more than chance?"""

from __future__ import annotations

from pathlib import Path

import click

from sda_features.artifacts import to_json

from .ranges import SEEDS


@click.command()
@click.argument("run_a", type=click.Path(path_type=Path))
@click.argument("run_b", type=click.Path(path_type=Path))
@click.option("--seed", type=SEEDS, default=0, show_default=True, help="Seed of the bootstrap.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(run_a: Path, run_b: Path, seed: int, as_json: bool) -> None:
    """Compare RUN_A with RUN_B user by user: paired t-test and paired bootstrap interval of each metric.

    A run is a run folder, or a folder with run folders that are seeds of one setting; then each user
    counts with the mean over seeds. Runs of different data, split or protocol are refused. p-values
    are not corrected for the number of metrics.

    \b
    Example:
      sda-features compare runs/sasrec-sda runs/sasrec-id
    """
    from sda_features.evaluation.runs import compare_runs, read_seeds
    from sda_features.report.tables import differences_table
    from sda_features.workflows.paper_tables import difference_row

    sides = [read_seeds(folder) for folder in (run_a, run_b)]
    rows = [difference_row(found) for found in compare_runs(sides[0], sides[1], seed=seed)]
    if as_json:
        seeds = {str(folder): len(runs) for folder, runs in zip((run_a, run_b), sides, strict=True)}
        click.echo(to_json({"runs": seeds, "differences": rows}))
        return
    names = (run_a.name, run_b.name) if run_a.name != run_b.name else (str(run_a), str(run_b))
    click.echo(differences_table(rows, names))
    if min(map(len, sides)) == 1:
        click.echo("\nOne seed a side compares two trained models, not what they were trained on.")
