"""`sda-features prune`: delete versions that are not live."""

from __future__ import annotations

from pathlib import Path

import click

from sda_features.artifacts import to_json
from sda_features.errors import SettingsError

from .version_options import version_options


@click.command(name="prune")
@click.argument("names", metavar="[VERSION]...", nargs=-1)
@click.option("--keep", multiple=True, metavar="VERSION", help="Keep this version too; may be repeated.")
@version_options
def command(
    names: tuple[str, ...], keep: tuple[str, ...], repo: Path, feature_set: str, as_json: bool
) -> None:
    """Delete each VERSION, or all that are neither live nor kept, online and offline.

    Keys and fields are deleted exactly; other versions, feature sets and projects are not touched.
    After that `rollback` cannot return to a deleted version.

    \b
    Example:
      sda-features prune --repo shop/feature_repo
      sda-features prune 3f9c --repo shop/feature_repo
    """
    if names and keep:
        raise SettingsError("Give versions to delete, or --keep and all others that are not live; not both.")
    from sda_features.feature_store.lifecycle import prune
    from sda_features.feature_store.versions import open_versions

    with open_versions(repo, feature_set) as versions:
        pruned = prune(versions, names, keep=keep)
    if as_json:
        deleted = [state.version for state in pruned]
        click.echo(to_json({"feature_set": feature_set, "deleted": deleted}))
        return
    for state in pruned:
        click.echo(f"deleted {state.version} from slot {state.slot}, {state.items:,} items")
    if not pruned:
        click.echo(f"Nothing to delete: {feature_set} has no version besides what is served or kept.")
