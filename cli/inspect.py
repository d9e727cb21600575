"""`sda-features inspect`: the state of a version's vectors in numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from sda_features.config import CatalogSettings

from .options import collect, settings_options
from .version_options import space_options, version_options


@click.command(name="inspect")
@click.argument("catalog")
@space_options
@settings_options(CatalogSettings, skip=("path",))
@version_options
def command(
    catalog: str,
    version: str | None,
    against: str | None,
    repo: Path,
    feature_set: str,
    as_json: bool,
    **values: Any,
) -> None:
    """Measure the vectors of CATALOG's items: alignment, spread, rank, neighbours, duplicates.

    \b
    Example:
      sda-features inspect items.parquet --repo shop/feature_repo
      sda-features inspect items.parquet --repo shop/feature_repo --version 526f --against @
    """
    settings = CatalogSettings.parse(path=catalog, **collect(CatalogSettings, values))
    from sda_features.report.inspection import inspection_table
    from sda_features.workflows.inspect_vectors import inspect_catalog

    spaces, change = inspect_catalog(repo, feature_set, settings, version=version, against=against)
    if as_json:
        click.echo(json.dumps({"spaces": spaces, "change": change}))
        return
    click.echo(inspection_table(spaces, change))
