"""`sda-features init`: add the item-vector definitions to a Feast repo."""

from __future__ import annotations

from pathlib import Path

import click

from sda_features.api.repo import Repo

from .options import names, show, verb
from .version_options import open_repo


@verb(Repo.init)
@click.argument("repo", type=click.Path(path_type=Path, file_okay=False), default=".")
@click.option(
    "--feature-sets",
    default="sda,vanilla",
    show_default=True,
    callback=names,
    metavar="A,B,...",
    help="Feature sets to define; NAME:float16 and NAME:int8 store smaller numbers.",
)
@click.option(
    "--slots",
    type=click.IntRange(1, 100),
    default=2,
    show_default=True,
    help="Versions of a feature set that can be stored side by side.",
)
@click.option("--entity", help="The repo's item entity: its name, its variable, or module:variable.")
@click.option("--join-key", default="item_id", show_default=True, help="Join key of the item entity.")
@click.option(
    "--source-folder",
    default="data/item_embeddings",
    show_default=True,
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
def command(
    repo: Path,
    feature_sets: list[str],
    slots: int,
    entity: str | None,
    join_key: str,
    source_folder: str,
    feast_materialize: bool | None,
    force: bool,
    as_json: bool,
) -> None:
    """Add the item-vector feature views to the Feast repo in REPO, as one file.

    An entity of items that the repo already has is used, and a file that you edited is not replaced.
    Beside it lies sda-features.toml with every setting, commented out. No other file is touched.

    \b
    Example:
      feast init shop && cd shop/feature_repo
      sda-features init
      feast apply
    """
    result = open_repo(repo).init(
        feature_sets=feature_sets,
        slots=slots,
        entity=entity,
        join_key=join_key,
        source_folder=source_folder,
        feast_materialize=feast_materialize,
        force=force,
    )
    show(result, as_json)
