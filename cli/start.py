"""Verbs to start with: the demo, a repo, its settings, the machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sda_features.api import functions
from sda_features.api.repo import Repo

from .options import JSON, REPO, open_repo, show, verb
from .ranges import FOLDER, NAMES, PATH, SEEDS

if TYPE_CHECKING:
    from sda_features.workflows.doctor import Finding


@verb(functions.demo)
@click.option("--output", "-o", type=FOLDER, help="Folder to write.")
@click.option("--seed", type=SEEDS, help="Seed of data, model and training.")
@click.option("--json", "as_json", is_flag=True, help="Print only the results, as one JSON object.")
def demo(output: Path, seed: int, as_json: bool) -> None:
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


@verb(Repo.init)
@click.argument("repo", type=click.Path(path_type=Path, file_okay=False), default=".")
@click.option(
    "--feature-sets",
    type=NAMES,
    help="Feature sets to define; NAME:float16 and NAME:int8 store smaller numbers.",
)
@click.option(
    "--slots", type=click.IntRange(1, 100), help="Versions of a feature set that can be stored side by side."
)
@click.option("--entity", help="The repo's item entity: its name, its variable, or module:variable.")
@click.option("--join-key", help="Join key of the item entity.")
@click.option("--source-folder", help="Folder of the offline parts, relative to the repo.")
@click.option(
    "--feast-materialize/--no-feast-materialize",
    help="Whether the repo's own `feast materialize` writes the vectors, too; it runs where the source folder is. "
    "By default it does if its stores can read the folder.",
)
@click.option("--force", is_flag=True, help="Replace the file even if it was edited.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def init(repo: Path, as_json: bool, **values: Any) -> None:
    """Add the item-vector feature views to the Feast repo in REPO, as one file.

    An entity of items that the repo already has is used, and a file that you edited is not replaced.
    Beside it lies sda-features.toml with every setting, commented out. No other file is touched.

    \b
    Example:
      feast init shop && cd shop/feature_repo
      sda-features init
      feast apply
    """
    show(open_repo(repo).init(**values), as_json)


@verb(Repo.config)
@click.argument("command_name", metavar="[VERB]", required=False)
@REPO
@click.option("--feature-set", help="Feature set that VERB is about.")
@JSON
def config(command_name: str | None, repo: Path, feature_set: str, as_json: bool) -> None:
    """Print what sda-features.toml sets, or every option of VERB with its value and where that comes from.

    \b
    Example:
      sda-features config --repo shop/feature_repo
      sda-features config materialize --repo shop/feature_repo --feature-set vanilla
    """
    show(open_repo(repo).config(command_name, feature_set=feature_set), as_json)


COLOURS = {"ok": "green", "note": "yellow", "fault": "red"}


@verb(functions.doctor)
@click.option("--repo", type=PATH, help="Feast repo; its online store is asked, too.")
@click.option("--model", metavar="FOLDER", help="Model or checkpoint whose files are looked at.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON object.")
def doctor(repo: Path | None, model: str | None, as_json: bool) -> None:
    """Look at Python, torch and GPU, bitsandbytes, Feast repo, Redis, disk and model; say what to do about each.

    Exit status 1 if there is a fault.

    \b
    Example:
      sda-features doctor --repo shop/feature_repo --model runs/sda/checkpoint
    """

    def echo(finding: Finding) -> None:
        mark, text = str(finding)[:6], str(finding)[6:]
        click.echo(click.style(mark, fg=COLOURS[finding.status]) + text)

    found = functions.doctor(repo=repo, model=model, echo=(lambda finding: None) if as_json else echo)
    if as_json:
        show(found, as_json)
    sys.exit(found.exit_status)
