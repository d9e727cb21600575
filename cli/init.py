"""`sda-features init`: add the item-vector definitions to a Feast repo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sda_features.api.repo import Repo

from .options import names, show, verb
from .version_options import open_repo


@verb(Repo.init)
@click.argument("repo", type=click.Path(path_type=Path, file_okay=False), default=".")
@click.option(
    "--feature-sets",
    default="sda,vanilla",
    callback=names,
    metavar="A,B,...",
    help="Feature sets to define; NAME:float16 and NAME:int8 store smaller numbers.",
)
@click.option(
    "--slots",
    type=click.IntRange(1, 100),
    default=2,
    help="Versions of a feature set that can be stored side by side.",
)
@click.option("--entity", help="The repo's item entity: its name, its variable, or module:variable.")
@click.option("--join-key", default="item_id", help="Join key of the item entity.")
@click.option(
    "--source-folder",
    default="data/item_embeddings",
    help="Folder of the offline parts, relative to the repo.",
)
@click.option(
    "--feast-materialize/--no-feast-materialize",
    default=None,
    help="Whether the repo's own `feast materialize` writes the vectors, too; it runs where the source folder is. "
    "By default it does if its stores can read the folder.",
)
@click.option("--force", is_flag=True, help="Replace the file even if it was edited.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(repo: Path, as_json: bool, **values: Any) -> None:
    """Add the item-vector feature views to the Feast repo in REPO, as one file.

    An entity of items that the repo already has is used, and a file that you edited is not replaced.
    Beside it lies sda-features.toml with every setting, commented out. No other file is touched.

    \b
    Example:
      feast init shop && cd shop/feature_repo
      sda-features init
      feast apply
    """
    show(open_repo(repo).init(**values), as_json)
