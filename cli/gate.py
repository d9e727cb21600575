"""`sda-features gate`: may this version be served?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from sda_features.config import CatalogSettings, LogSettings

from .options import collect, settings_options
from .ranges import OutputFile
from .version_options import version_options


@click.command(name="gate")
@click.argument("candidate")
@click.argument("catalog")
@click.option("--interactions", type=click.Path(path_type=Path), help="Log to compare both versions on, too.")
@click.option(
    "--thresholds",
    type=click.Path(path_type=Path),
    help="TOML file of limits.  [default: sda-gate.toml of the repo]",
)
@click.option("--junit", type=OutputFile(), help="Also write JUnit XML here.")
@click.option("--markdown", type=OutputFile(), help="Also write the table here, as Markdown.")
@settings_options(CatalogSettings, skip=("path",))
@settings_options(LogSettings, prefix="log")
@version_options
def command(
    candidate: str,
    catalog: str,
    interactions: Path | None,
    thresholds: Path | None,
    junit: Path | None,
    markdown: Path | None,
    repo: Path,
    feature_set: str,
    as_json: bool,
    **values: Any,
) -> None:
    """Check the version CANDIDATE over the items of CATALOG, alone and against the live version.

    Exit status 0: it may be served, and `promote --gated` accepts it. 3: a check failed. 1: it could
    not be checked.

    \b
    Example:
      sda-features gate 526f items.parquet --repo shop/feature_repo --junit gate.xml
    """
    settings = CatalogSettings.parse(path=catalog, **collect(CatalogSettings, values))
    from sda_features.artifacts import atomic_file
    from sda_features.thresholds import read_thresholds
    from sda_features.workflows.gate import run_gate

    limits = read_thresholds(repo, thresholds)
    log = LogSettings.parse(**collect(LogSettings, values, prefix="log"))
    verdict = run_gate(repo, feature_set, candidate, settings, limits, interactions=interactions, log=log)
    for path, text in ((junit, verdict.junit()), (markdown, verdict.markdown())):
        if path is not None:
            with atomic_file(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
    click.echo(json.dumps(verdict.json()) if as_json else verdict.markdown(), nl=as_json)
    if not verdict.passed:
        sys.exit(3)
