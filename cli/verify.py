"""`sda-features verify`: does every store say the same of every item?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sda_features.api.vector_set import VectorSet

from .options import settings_options, show, verb
from .ranges import COUNT, SEEDS
from .version_options import vector_set, version_options


@verb(VectorSet.verify)
@click.argument("catalog")
@click.option("--version", "version", help="Adapter version to check.  [default: the live one]")
@click.option("--sample", type=COUNT, help="Compare the vectors of so many random items.")
@click.option("--seed", type=SEEDS, default=0, help="Seed of the sample.")
@settings_options(VectorSet.verify)
@version_options
def command(repo: Path, feature_set: str, as_json: bool, **values: Any) -> None:
    """Compare CATALOG, offline rows, online bytes and the trainers' matrix; fail at the first difference.

    \b
    Example:
      sda-features verify items.parquet --repo shop/feature_repo
      sda-features verify items.parquet --repo shop/feature_repo --sample 1000
    """
    show(vector_set(repo, feature_set).verify(progress=not as_json, **values), as_json)
