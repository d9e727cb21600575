"""Verbs that look at the vectors of a version, and decide whether it is served."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from sda_features.api.vector_set import VectorSet

from .options import VERSION, settings_options, show, vector_set, verb, version_options
from .ranges import COUNT, FOLDER, PATH, SEEDS, FiniteRange, OutputFile

AGAINST = click.option(
    "--against",
    metavar="[SET][@VERSION]",
    help="Compare with another feature set or version; @ alone is the live version.",
)


@verb(VectorSet.inspect)
@click.argument("catalog")
@VERSION
@AGAINST
@settings_options(VectorSet.inspect)
@version_options
def inspect(repo: Path, feature_set: str, as_json: bool, **values: Any) -> None:
    """Measure the vectors of CATALOG's items: alignment, spread, rank, neighbours, duplicates.

    \b
    Example:
      sda-features inspect items.parquet --repo shop/feature_repo
      sda-features inspect items.parquet --repo shop/feature_repo --version 526f --against @
    """
    show(vector_set(repo, feature_set).inspect(**values), as_json)


@verb(VectorSet.report)
@click.argument("catalog")
@VERSION
@AGAINST
@click.option("--output", "-o", type=OutputFile(), help="HTML file.")
@click.option("--run", type=PATH, help="Folder that `adapt` wrote: curves, experts, conflict.")
@click.option(
    "--recommender",
    "recommenders",
    multiple=True,
    type=PATH,
    help="Run of a recommender for the table; may be repeated.",
)
@click.option("--max-megabytes", type=FiniteRange(0, 1e9), help="Largest size of the pictures in the file.")
@settings_options(VectorSet.report)
@version_options
def report(repo: Path, feature_set: str, as_json: bool, **values: Any) -> None:
    """Write a page to look at: numbers, a map of items, neighbours side by side, training.

    The file holds everything it shows, thumbnails too, and needs no network.

    \b
    Example:
      sda-features report items.parquet --repo shop/feature_repo -o report.html
      sda-features report items.parquet --repo shop/feature_repo --version 526f --against @ --run runs/sda
    """
    show(vector_set(repo, feature_set).report(progress=not as_json, **values), as_json)


@verb(VectorSet.similar)
@click.argument("item")
@click.argument("catalog")
@click.option("--by", type=click.Choice(["text", "image", "both"]), help="What is compared.")
@click.option("--k", type=click.IntRange(1, 1000), help="Items to list.")
@VERSION
@settings_options(VectorSet.similar)
@version_options
def similar(repo: Path, feature_set: str, as_json: bool, **values: Any) -> None:
    """List the items of CATALOG nearest to ITEM, an id, by exact search over the stored vectors.

    \b
    Example:
      sda-features similar B001 items.parquet --repo shop/feature_repo --by text
    """
    show(vector_set(repo, feature_set).similar(**values), as_json)


def _codes(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    match = re.fullmatch(r"([1-9]\d?)x([1-9]\d{0,4})", value)
    if not match:
        raise click.BadParameter(f"expected LEVELSxCODES such as 3x256, got {value!r}")
    return int(match[1]), int(match[2])


@verb(VectorSet.index)
@click.argument("catalog")
@click.option("--output", "-o", type=FOLDER, help="Folder to write.")
@VERSION
@click.option(
    "--codes",
    callback=_codes,
    metavar="LEVELSxCODES",
    help="Also write codes.parquet: residual k-means codes of text and picture together, e.g. 3x256.",
)
@settings_options(VectorSet.index)
@version_options
def index(repo: Path, feature_set: str, as_json: bool, **values: Any) -> None:
    """Write indexes of CATALOG's items by text, picture and both (faiss), with their recall against exact search.

    codes.parquet is a source for a Feast view (`codes_view`); written again for the same version, the
    codes of an unchanged item stay.

    \b
    Example:
      sda-features index items.parquet --repo shop/feature_repo -o index --codes 3x256
    """
    show(vector_set(repo, feature_set).index(**values), as_json)


@verb(VectorSet.gate)
@click.argument("candidate")
@click.argument("catalog")
@click.option("--interactions", type=PATH, help="Log to compare both versions on, too.")
@click.option(
    "--thresholds", type=PATH, help="TOML file of limits.  [default: [limits] of the settings file]"
)
@click.option("--junit", type=OutputFile(), help="Also write JUnit XML here.")
@click.option("--markdown", type=OutputFile(), help="Also write the table here, as Markdown.")
@settings_options(VectorSet.gate)
@version_options
def gate(repo: Path, feature_set: str, as_json: bool, **values: Any) -> None:
    """Check the version CANDIDATE over the items of CATALOG, alone and against the live version.

    Exit status 0: it may be served, and `promote --gated` accepts it. 3: a check failed. 1: it could
    not be checked.

    \b
    Example:
      sda-features gate 526f items.parquet --repo shop/feature_repo --junit gate.xml
    """
    show(vector_set(repo, feature_set).gate(**values), as_json)


@verb(VectorSet.verify)
@click.argument("catalog")
@click.option("--version", help="Adapter version to check.  [default: the live one]")
@click.option("--sample", type=COUNT, help="Compare the vectors of so many random items.")
@click.option("--seed", type=SEEDS, help="Seed of the sample.")
@settings_options(VectorSet.verify)
@version_options
def verify(repo: Path, feature_set: str, as_json: bool, **values: Any) -> None:
    """Compare CATALOG, offline rows, online bytes and the trainers' matrix; fail at the first difference.

    \b
    Example:
      sda-features verify items.parquet --repo shop/feature_repo
      sda-features verify items.parquet --repo shop/feature_repo --sample 1000
    """
    show(vector_set(repo, feature_set).verify(progress=not as_json, **values), as_json)
