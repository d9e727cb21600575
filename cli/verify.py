"""`sda-features verify`: does every store say the same of every item?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from sda_features.artifacts import to_json
from sda_features.config import CatalogSettings

from .options import collect, settings_options
from .ranges import COUNT, SEEDS
from .version_options import version_options


@click.command(name="verify")
@click.argument("catalog")
@click.option("--version", "version", help="Adapter version to check.  [default: the live one]")
@click.option("--sample", type=COUNT, help="Compare the vectors of so many random items.")
@click.option("--seed", type=SEEDS, default=0, show_default=True, help="Seed of the sample.")
@settings_options(CatalogSettings, skip=("path",))
@version_options
def command(
    catalog: str,
    version: str | None,
    sample: int | None,
    seed: int,
    repo: Path,
    feature_set: str,
    as_json: bool,
    **values: Any,
) -> None:
    """Compare CATALOG, offline rows, online bytes and the trainers' matrix; fail at the first difference.

    \b
    Example:
      sda-features verify items.parquet --repo shop/feature_repo
      sda-features verify items.parquet --repo shop/feature_repo --sample 1000
    """
    from sda_features.workflows import verify

    settings = CatalogSettings.parse(path=catalog, **collect(CatalogSettings, values))
    found = verify(
        repo, feature_set, settings, version=version, sample=sample, seed=seed, progress=not as_json
    )
    if as_json:
        click.echo(to_json(asdict(found)))
        return
    online = "Redis and " if found.online else "(the online store is not a Redis server and was not read) "
    click.echo(f"catalogue  {found.items:,} items are stored as they are, nothing else is")
    click.echo(
        f"vectors    {found.vectors:,} are the same in the parquet parts, {online}the trainers' matrix"
    )
    click.echo(f"version    {found.version} in {found.view}")
