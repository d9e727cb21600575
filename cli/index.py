"""`sda-features index`: an index of nearest items, and codes of items."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from sda_features.config import CatalogSettings

from .options import collect, settings_options
from .ranges import FOLDER
from .version_options import version_options


def _codes(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    match = re.fullmatch(r"([1-9]\d?)x([1-9]\d{0,4})", value)
    if not match:
        raise click.BadParameter(f"expected LEVELSxCODES such as 3x256, got {value!r}")
    return int(match[1]), int(match[2])


@click.command(name="index")
@click.argument("catalog")
@click.option(
    "--output",
    "-o",
    type=FOLDER,
    default="index",
    show_default=True,
    help="Folder to write.",
)
@click.option("--version", "version", help="Adapter version.  [default: the live one]")
@click.option(
    "--codes",
    callback=_codes,
    metavar="LEVELSxCODES",
    help="Also write codes.parquet: residual k-means codes of text and picture together, e.g. 3x256.",
)
@settings_options(CatalogSettings, skip=("path",))
@version_options
def command(
    catalog: str,
    output: Path,
    version: str | None,
    codes: tuple[int, int] | None,
    repo: Path,
    feature_set: str,
    as_json: bool,
    **values: Any,
) -> None:
    """Write indexes of CATALOG's items by text, picture and both (faiss), with their recall against exact search.

    codes.parquet is a source for a Feast view (`codes_view`); written again for the same version, the
    codes of an unchanged item stay.

    \b
    Example:
      sda-features index items.parquet --repo shop/feature_repo -o index --codes 3x256
    """
    settings = CatalogSettings.parse(path=catalog, **collect(CatalogSettings, values))
    from sda_features.workflows.similar import RECALL_OF, write_index

    written = write_index(repo, feature_set, settings, output, version=version, codes=codes)
    if as_json:
        click.echo(json.dumps(asdict(written)))
        return
    for view, items in written.items.items():
        recall = f"recall@{RECALL_OF} {written.recall[view]:.3f} against exact search"
        click.echo(f"{view:<6} {items:>9,} items  {recall}")
    if written.codes:
        click.echo(f"codes  {written.codes[0]} levels of {written.codes[1]}")
    click.echo(f"index  {written.path}, version {written.version}")
