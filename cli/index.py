"""`sda-features index`: an index of nearest items, and codes of items."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from sda_features.api.vector_set import VectorSet

from .options import VERSION, settings_options, show, verb
from .ranges import FOLDER
from .version_options import vector_set, version_options


def _codes(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    match = re.fullmatch(r"([1-9]\d?)x([1-9]\d{0,4})", value)
    if not match:
        raise click.BadParameter(f"expected LEVELSxCODES such as 3x256, got {value!r}")
    return int(match[1]), int(match[2])


@verb(VectorSet.index)
@click.argument("catalog")
@click.option("--output", "-o", type=FOLDER, default="index", help="Folder to write.")
@VERSION
@click.option(
    "--codes",
    callback=_codes,
    metavar="LEVELSxCODES",
    help="Also write codes.parquet: residual k-means codes of text and picture together, e.g. 3x256.",
)
@settings_options(VectorSet.index)
@version_options
def command(repo: Path, feature_set: str, as_json: bool, **values: Any) -> None:
    """Write indexes of CATALOG's items by text, picture and both (faiss), with their recall against exact search.

    codes.parquet is a source for a Feast view (`codes_view`); written again for the same version, the
    codes of an unchanged item stay.

    \b
    Example:
      sda-features index items.parquet --repo shop/feature_repo -o index --codes 3x256
    """
    show(vector_set(repo, feature_set).index(**values), as_json)
