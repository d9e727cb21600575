"""`sda-features demo`: the whole product on generated data."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sda_features.artifacts import to_json

from .ranges import FOLDER, SEEDS


@click.command()
@click.option(
    "--output",
    "-o",
    type=FOLDER,
    default="demo-output",
    show_default=True,
    help="Folder to write.",
)
@click.option("--seed", type=SEEDS, default=0, show_default=True, help="Seed of data, model and training.")
@click.option("--json", "as_json", is_flag=True, help="Print only the results, as one JSON object.")
def command(output: Path, seed: int, as_json: bool) -> None:
    """Generate a small shop and walk adapt, feast apply, materialize, lookup and train on it.

    Needs no GPU, no network and no Redis; takes a few minutes on two cores. Data and base model
    are generated.

    \b
    Example:
      sda-features demo --output demo-output
    """
    from sda_features.demo.walk import walk

    walk(output, (lambda line: None) if as_json else click.echo, seed=seed, progress=not as_json)
    if as_json:
        click.echo(to_json(json.loads((output / "results.json").read_text())))
