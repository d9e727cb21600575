"""`sda-features versions`: what is stored of a feature set."""

from __future__ import annotations

from pathlib import Path

import click

from .version_options import show_versions, version_options


@click.command(name="versions")
@version_options
def command(repo: Path, feature_set: str, as_json: bool) -> None:
    """List the versions of a feature set and which one is live.

    `unrecorded` is what an interrupted materialize or prune has left: run either again.

    \b
    Example:
      sda-features versions --repo shop/feature_repo
    """
    from sda_features.feature_store.lifecycle import list_versions
    from sda_features.feature_store.versions import open_versions

    with open_versions(repo, feature_set) as versions:
        show_versions(list_versions(versions), feature_set, as_json)
