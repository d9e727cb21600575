"""`sda-features compare`: do two runs differ by more than chance?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sda_features.api import functions

from .options import JSON, show, verb
from .ranges import SEEDS


@verb(functions.compare)
@click.argument("run_a", type=click.Path(path_type=Path))
@click.argument("run_b", type=click.Path(path_type=Path))
@click.option("--seed", type=SEEDS, default=0, help="Seed of the bootstrap.")
@JSON
def command(as_json: bool, **values: Any) -> None:
    """Compare RUN_A with RUN_B user by user: paired t-test and paired bootstrap interval of each metric.

    A run is a run folder, or a folder with run folders that are seeds of one setting; then each user
    counts with the mean over seeds. Runs of different data, split or protocol are refused. p-values
    are not corrected for the number of metrics.

    \b
    Example:
      sda-features compare runs/sasrec-sda runs/sasrec-id
    """
    show(functions.compare(**values), as_json)
