"""`sda-features rollback`: make the version live that was live before."""

from __future__ import annotations

from pathlib import Path

import click

from .version_options import show_versions, version_options


@click.command(name="rollback")
@version_options
def command(repo: Path, feature_set: str, as_json: bool) -> None:
    """Serve the version that was live before; a second call returns.

    \b
    Example:
      sda-features rollback --repo shop/feature_repo
    """
    from sda_features.feature_store.lifecycle import list_versions, rollback
    from sda_features.feature_store.versions import open_versions

    with open_versions(repo, feature_set) as versions:
        rollback(versions)
        show_versions(list_versions(versions), feature_set, as_json)
