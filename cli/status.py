"""`sda-features status`: what a feature set has in both stores, against its record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sda_features.api.vector_set import VectorSet

from .options import show, verb
from .ranges import FiniteRange
from .version_options import vector_set, version_options


@verb(VectorSet.status)
@click.option(
    "--max-age",
    type=FiniteRange(min=0, min_open=True, max=1e6),
    metavar="HOURS",
    help="Report a live version that was last brought up to date longer ago.",
)
@click.option(
    "--orphans", is_flag=True, help="Count rows in Redis that are not stored offline: a scan of all its keys."
)
@click.option("--sweep", "sweep", is_flag=True, help="Delete those rows first.")
@version_options
def command(repo: Path, feature_set: str, as_json: bool, **values: Any) -> None:
    """Compare the version record, the offline rows and Redis; the exit status is 3 if something is wrong.

    \b
    Example:
      sda-features status --repo shop/feature_repo --max-age 26 --json
    """
    show(vector_set(repo, feature_set).status(**values), as_json)
