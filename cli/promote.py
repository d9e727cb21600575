"""`sda-features promote`: make a version live."""

from __future__ import annotations

from pathlib import Path

import click

from .version_options import show_versions, version_options


@click.command(name="promote")
@click.argument("version")
@version_options
def command(version: str, repo: Path, feature_set: str, as_json: bool) -> None:
    """Serve VERSION, or the one version that begins with it.

    Readers in flight get vectors of the old version or of the new one, never of both.

    \b
    Example:
      sda-features promote 3f9c --repo shop/feature_repo
    """
    from sda_features.feature_store.lifecycle import list_versions, promote
    from sda_features.feature_store.versions import open_versions

    with open_versions(repo, feature_set) as versions:
        promote(versions, version)
        show_versions(list_versions(versions), feature_set, as_json)
