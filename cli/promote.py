"""`sda-features promote`: make a version live."""

from __future__ import annotations

from pathlib import Path

import click

from .version_options import show_versions, version_options


@click.command(name="promote")
@click.argument("version")
@click.option("--gated", is_flag=True, help="Refuse a version that `sda-features gate` has not passed.")
@version_options
def command(version: str, gated: bool, repo: Path, feature_set: str, as_json: bool) -> None:
    """Serve VERSION, or the one version that begins with it.

    Readers in flight get vectors of the old version or of the new one, never of both.

    \b
    Example:
      sda-features promote 3f9c --repo shop/feature_repo
    """
    from sda_features.feature_store.lifecycle import list_versions, promote
    from sda_features.feature_store.versions import open_versions

    with open_versions(repo, feature_set) as versions:
        if gated:
            from sda_features.feature_store.versions import match_version
            from sda_features.workflows.gate import require_pass

            stored = [state.version for state in list_versions(versions)]
            require_pass(repo, feature_set, match_version(version, stored, feature_set))
        promote(versions, version)
        show_versions(list_versions(versions), feature_set, as_json)
