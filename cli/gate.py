"""`sda-features gate`: may this version be served?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sda_features.api.vector_set import VectorSet

from .options import settings_options, show, verb
from .ranges import OutputFile
from .version_options import vector_set, version_options


@verb(VectorSet.gate)
@click.argument("candidate")
@click.argument("catalog")
@click.option("--interactions", type=click.Path(path_type=Path), help="Log to compare both versions on, too.")
@click.option(
    "--thresholds",
    type=click.Path(path_type=Path),
    help="TOML file of limits.  [default: [limits] of the settings file]",
)
@click.option("--junit", type=OutputFile(), help="Also write JUnit XML here.")
@click.option("--markdown", type=OutputFile(), help="Also write the table here, as Markdown.")
@settings_options(VectorSet.gate)
@version_options
def command(repo: Path, feature_set: str, as_json: bool, **values: Any) -> None:
    """Check the version CANDIDATE over the items of CATALOG, alone and against the live version.

    Exit status 0: it may be served, and `promote --gated` accepts it. 3: a check failed. 1: it could
    not be checked.

    \b
    Example:
      sda-features gate 526f items.parquet --repo shop/feature_repo --junit gate.xml
    """
    show(vector_set(repo, feature_set).gate(**values), as_json)
