"""`sda-features prune`: delete versions that are not live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sda_features.api.vector_set import VectorSet

from .options import show, verb
from .version_options import vector_set, version_options


@verb(VectorSet.prune)
@click.argument("names", metavar="[VERSION]...", nargs=-1)
@click.option("--keep", multiple=True, metavar="VERSION", help="Keep this version too; may be repeated.")
@version_options
def command(repo: Path, feature_set: str, as_json: bool, **values: Any) -> None:
    """Delete each VERSION, or all that are neither live nor kept, online and offline.

    Keys and fields are deleted exactly; other versions, feature sets and projects are not touched.
    After that `rollback` cannot return to a deleted version.

    \b
    Example:
      sda-features prune --repo shop/feature_repo
      sda-features prune 3f9c --repo shop/feature_repo
    """
    show(vector_set(repo, feature_set).prune(**values), as_json)
