"""`sda-features config`: which settings hold, and where each comes from."""

from __future__ import annotations

from pathlib import Path

import click

from sda_features.api.repo import Repo

from .options import JSON, REPO, show, verb
from .version_options import open_repo


@verb(Repo.config)
@click.argument("command_name", metavar="[VERB]", required=False)
@REPO
@click.option("--feature-set", default="sda", help="Feature set that VERB is about.")
@JSON
def command(command_name: str | None, repo: Path, feature_set: str, as_json: bool) -> None:
    """Print what sda-features.toml sets, or every option of VERB with its value and where that comes from.

    \b
    Example:
      sda-features config --repo shop/feature_repo
      sda-features config materialize --repo shop/feature_repo --feature-set vanilla
    """
    show(open_repo(repo).config(command_name, feature_set=feature_set), as_json)
