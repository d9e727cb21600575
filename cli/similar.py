"""`sda-features similar`: the items nearest to one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sda_features.api.vector_set import VectorSet

from .options import VERSION, settings_options, show, verb
from .version_options import vector_set, version_options


@verb(VectorSet.similar)
@click.argument("item")
@click.argument("catalog")
@click.option("--by", type=click.Choice(["text", "image", "both"]), default="both", help="What is compared.")
@click.option("--k", type=click.IntRange(1, 1000), default=10, help="Items to list.")
@VERSION
@settings_options(VectorSet.similar)
@version_options
def command(repo: Path, feature_set: str, as_json: bool, **values: Any) -> None:
    """List the items of CATALOG nearest to ITEM, an id, by exact search over the stored vectors.

    \b
    Example:
      sda-features similar B001 items.parquet --repo shop/feature_repo --by text
    """
    show(vector_set(repo, feature_set).similar(**values), as_json)
