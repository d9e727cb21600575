"""`sda-features lookup`: read item vectors from the online store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sda_features.api.vector_set import VectorSet
from sda_features.workflows.lookup import SHOWN

from .options import REPO, show, verb
from .version_options import vector_set


@verb(VectorSet.lookup)
@click.argument("item_ids", metavar="ID...", nargs=-1, required=True)
@REPO
@click.option("--feature-set", default="sda", help="Feature set to read.")
@click.option(
    "--modality", type=click.Choice(["text", "image", "both"]), default="both", help="Vectors to show."
)
@click.option("--join-key", default="item_id", help="Join key of the item entity.")
@click.option(
    "--id-type",
    type=click.Choice(["string", "int32", "int64"]),
    default="string",
    help="Type of the ids in Feast.",
)
@click.option("--full", is_flag=True, help=f"Print all values of a vector, not only the first {SHOWN}.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(repo: Path, feature_set: str, as_json: bool, **values: Any) -> None:
    """Show what the online store holds for the items ID...

    \b
    Example:
      sda-features lookup B001 B002 --repo shop/feature_repo
      sda-features lookup B001 --repo shop/feature_repo --modality text --full --json
    """
    found = vector_set(repo, feature_set).lookup(**values)
    show(found, as_json)
    if not found.found:
        click.echo(
            f"No vectors of {found.view} in project {found.project} at {found.address}. Materialize them "
            "(`sda-features materialize`), or correct --feature-set, --join-key or --id-type.",
            err=True,
        )
