"""`sda-features doctor`: is everything here that the commands need?"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "fault": ("fault", "red")}


@click.command(name="doctor")
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
    from sda_features.workflows.doctor import examine

    findings = []
    for finding in examine(repo, model):
        findings.append(finding)
        if not as_json:
            mark, colour = MARKS[finding.status]
            click.echo(f"{click.style(f'{mark:<6}', fg=colour)} {finding.subject:<13} {finding.found}")
            if finding.advice:
                click.echo(f"{'':20} {finding.advice}")
    if as_json:
        click.echo(json.dumps({"findings": [asdict(finding) for finding in findings]}))
    if any(finding.status == "fault" for finding in findings):
        sys.exit(1)
