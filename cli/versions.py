"""`sda-features versions`: what is stored of a feature set."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sda_features.errors import SettingsError

from .version_options import show_versions, version_options


@click.command(name="versions")
@click.option("--log", "audit", is_flag=True, help="Print the changes of the record instead, newest first.")
@click.option("--repair", "repairing", is_flag=True, help="Restore a record that Redis has lost, then list.")
@click.option("--live", metavar="VERSION", help="With --repair: the version that is live.")
@version_options
def command(
    audit: bool, repairing: bool, live: str | None, repo: Path, feature_set: str, as_json: bool
) -> None:
    """List the versions of a feature set and which one is live.

    `unrecorded` is what an interrupted materialize or prune has left: run either again.

    \b
    Example:
      sda-features versions --repo shop/feature_repo
    """
    from sda_features.feature_store.lifecycle import list_versions
    from sda_features.feature_store.repair import repair
    from sda_features.feature_store.versions import open_versions
    from sda_features.serving.pointer import read_audit

    if live and not repairing:
        raise SettingsError("--live is for --repair; make a version live with `sda-features promote`.")
    with open_versions(repo, feature_set) as versions:
        if repairing:
            repair(versions, live)
        if audit:
            changes = read_audit(versions.server, versions.key)
            lines = [f"{c['at']}  {c['who']}  {c['action']}  live {c['from']} -> {c['to']}" for c in changes]
            shown = (
                json.dumps({"feature_set": feature_set, "changes": changes}) if as_json else "\n".join(lines)
            )
            click.echo(shown or f"No change of {feature_set} is recorded.")
            return
        show_versions(list_versions(versions), feature_set, as_json)
