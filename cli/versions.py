"""`sda-features versions`: what is stored of a feature set."""

from __future__ import annotations

from pathlib import Path

import click

from sda_features.api.vector_set import VectorSet
from sda_features.results import Result

from .options import show, verb
from .version_options import vector_set, version_options


@verb(VectorSet.versions)
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
    vectors = vector_set(repo, feature_set)
    if not audit or repairing or live:
        found: Result = vectors.versions(repair=repairing, live=live)
    if audit:
        found = vectors.changes()
    show(found, as_json)
