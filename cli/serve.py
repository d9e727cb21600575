"""Verbs about what is served: the versions of a feature set, and what the online store holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sda_features.api.vector_set import VectorSet
from sda_features.results import Result

from .options import REPO, show, vector_set, verb, version_options
from .ranges import FiniteRange


@verb(VectorSet.versions)
@click.option("--log", "audit", is_flag=True, help="Print the changes of the record instead, newest first.")
@click.option("--repair", "repairing", is_flag=True, help="Restore a record that Redis has lost, then list.")
@click.option("--live", metavar="VERSION", help="With --repair: the version that is live.")
@version_options
def versions(
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


@verb(VectorSet.status)
@click.option(
    "--max-age",
    type=FiniteRange(min=0, min_open=True, max=1e6),
    metavar="HOURS",
    help="Report a live version that was last brought up to date longer ago.",
)
@click.option(
    "--orphans", is_flag=True, help="Count rows in Redis that are not stored offline: a scan of all its keys."
)
@click.option("--sweep", is_flag=True, help="Delete those rows first.")
@version_options
def status(repo: Path, feature_set: str, as_json: bool, **values: Any) -> None:
    """Compare the version record, the offline rows and Redis; the exit status is 3 if something is wrong.

    \b
    Example:
      sda-features status --repo shop/feature_repo --max-age 26 --json
    """
    show(vector_set(repo, feature_set).status(**values), as_json)


@verb(VectorSet.promote)
@click.argument("version")
@click.option("--gated", is_flag=True, help="Refuse a version that `sda-features gate` has not passed.")
@version_options
def promote(repo: Path, feature_set: str, as_json: bool, **values: Any) -> None:
    """Serve VERSION, or the one version that begins with it.

    Readers in flight get vectors of the old version or of the new one, never of both.

    \b
    Example:
      sda-features promote 3f9c --repo shop/feature_repo
    """
    show(vector_set(repo, feature_set).promote(**values), as_json)


@verb(VectorSet.rollback)
@version_options
def rollback(repo: Path, feature_set: str, as_json: bool) -> None:
    """Serve the version that was live before; a second call returns.

    \b
    Example:
      sda-features rollback --repo shop/feature_repo
    """
    show(vector_set(repo, feature_set).rollback(), as_json)


@verb(VectorSet.prune)
@click.argument("names", metavar="[VERSION]...", nargs=-1)
@click.option("--keep", multiple=True, metavar="VERSION", help="Keep this version too; may be repeated.")
@version_options
def prune(repo: Path, feature_set: str, as_json: bool, **values: Any) -> None:
    """Delete each VERSION, or all that are neither live nor kept, online and offline.

    Keys and fields are deleted exactly; other versions, feature sets and projects are not touched.
    After that `rollback` cannot return to a deleted version.

    \b
    Example:
      sda-features prune --repo shop/feature_repo
      sda-features prune 3f9c --repo shop/feature_repo
    """
    show(vector_set(repo, feature_set).prune(**values), as_json)


@verb(VectorSet.lookup)
@click.argument("item_ids", metavar="ID...", nargs=-1, required=True)
@REPO
@click.option("--feature-set", default="sda", help="Feature set to read.")
@click.option("--modality", type=click.Choice(["text", "image", "both"]), help="Vectors to show.")
@click.option("--join-key", help="Join key of the item entity.")
@click.option("--id-type", type=click.Choice(["string", "int32", "int64"]), help="Type of the ids in Feast.")
@click.option("--full", is_flag=True, help="Print all values of a vector, not only the first 4.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def lookup(repo: Path, feature_set: str, as_json: bool, **values: Any) -> None:
    """Show what the online store holds for the items ID...

    \b
    Example:
      sda-features lookup B001 B002 --repo shop/feature_repo
      sda-features lookup B001 --repo shop/feature_repo --modality text --full --json
    """
    found = vector_set(repo, feature_set).lookup(**values)
    show(found, as_json)
    if not found.found:
        click.echo(
            f"No vectors of {found.view} in project {found.project} at {found.address}. Materialize them "
            "(`sda-features materialize`), or correct --feature-set, --join-key or --id-type.",
            err=True,
        )
