"""`sda-features doctor`: is everything here that the commands need?"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sda_features.api import functions
from sda_features.workflows.doctor import Finding

from .options import show, verb

COLOURS = {"ok": "green", "note": "yellow", "fault": "red"}


@verb(functions.doctor)
@click.option("--repo", type=click.Path(path_type=Path), help="Feast repo; its online store is asked, too.")
@click.option("--model", metavar="FOLDER", help="Model or checkpoint whose files are looked at.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON object.")
def command(repo: Path | None, model: str | None, as_json: bool) -> None:
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
