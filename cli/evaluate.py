"""`sda-features evaluate`: the metrics of a saved run, also under another protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sda_features.api import functions

from .options import JSON, settings_options, show, verb
from .ranges import FiniteRange


@verb(functions.evaluate)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--interactions", help="The log the run was trained on; needed to rank again.")
@click.option(
    "--content-weight",
    type=FiniteRange(0, 1e6),
    help="Another weight of the content score, 0: the recommender alone.",
)
@settings_options(functions.evaluate)
@JSON
def command(as_json: bool, **values: Any) -> None:
    """Print the metrics of the run folder RUN, or rank its test items again under another protocol.

    Without options these are the metrics that were stored. A cut-off, a number of negatives, their
    seed, another limit of the tail or another weight of the content score rank again, from the
    factors in the run folder: no training, no vectors, but the same log. Nothing is written.

    \b
    Example:
      sda-features evaluate runs/sasrec-sda --negatives 99 --interactions interactions.parquet
    """
    show(functions.evaluate(**values), as_json)
