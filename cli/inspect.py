"""`sda-features inspect`: the state of a version's vectors in numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sda_features.api.vector_set import VectorSet

from .options import settings_options, show, verb
from .version_options import space_options, vector_set, version_options


@verb(VectorSet.inspect)
@click.argument("catalog")
@space_options
@settings_options(VectorSet.inspect)
@version_options
def command(repo: Path, feature_set: str, as_json: bool, **values: Any) -> None:
    """Measure the vectors of CATALOG's items: alignment, spread, rank, neighbours, duplicates.

    \b
    Example:
      sda-features inspect items.parquet --repo shop/feature_repo
      sda-features inspect items.parquet --repo shop/feature_repo --version 526f --against @
    """
    show(vector_set(repo, feature_set).inspect(**values), as_json)
