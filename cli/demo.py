"""`sda-features demo`: the whole product on generated data."""

from __future__ import annotations

from pathlib import Path

import click

from sda_features.api import functions

from .options import show, verb
from .ranges import FOLDER, SEEDS


@verb(functions.demo)
@click.option("--output", "-o", type=FOLDER, default="demo-output", help="Folder to write.")
@click.option("--seed", type=SEEDS, default=0, help="Seed of data, model and training.")
@click.option("--json", "as_json", is_flag=True, help="Print only the results, as one JSON object.")
def command(output: Path, seed: int, as_json: bool) -> None:
    """Generate a small shop and walk adapt, feast apply, materialize, lookup and train on it.

    Needs no GPU, no network and no Redis; takes eight minutes on two cores. Data and base model
    are generated.

    \b
    Example:
      sda-features demo --output demo-output
    """
    echo = (lambda line: None) if as_json else click.echo
    found = functions.demo(output=output, seed=seed, progress=not as_json, echo=echo)
    if as_json:
        show(found, as_json)
