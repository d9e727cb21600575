"""`sda-features similar`: the items nearest to one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from sda_features.config import CatalogSettings

from .options import collect, settings_options
from .version_options import version_options


@click.command(name="similar")
@click.argument("item")
@click.argument("catalog")
@click.option(
    "--by",
    type=click.Choice(["text", "image", "both"]),
    default="both",
    show_default=True,
    help="What is compared.",
)
@click.option("--k", type=click.IntRange(1, 1000), default=10, show_default=True, help="Items to list.")
@click.option("--version", "version", help="Adapter version.  [default: the live one]")
@settings_options(CatalogSettings, skip=("path",))
@version_options
def command(
    item: str,
    catalog: str,
    by: Any,
    k: int,
    version: str | None,
    repo: Path,
    feature_set: str,
    as_json: bool,
    **values: Any,
) -> None:
    """List the items of CATALOG nearest to ITEM, an id, by exact search over the stored vectors.

    \b
    Example:
      sda-features similar B001 items.parquet --repo shop/feature_repo --by text
    """
    settings = CatalogSettings.parse(path=catalog, **collect(CatalogSettings, values))
    from sda_features.report.tables import text_table
    from sda_features.workflows.similar import similar_items

    name, found = similar_items(repo, feature_set, settings, item, by=by, k=k, version=version)
    if as_json:
        click.echo(
            json.dumps({"item": item, "name": name, "by": by, "near": [asdict(near) for near in found]})
        )
        return
    click.echo(f"{item}  {name}\n")
    rows = [[f"{near.cosine:.3f}", near.item_id, near.name] for near in found]
    click.echo(text_table(rows, ["cosine", "item", "name"], ["right", "left", "left"]))
