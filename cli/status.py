"""`sda-features status`: what a feature set has in both stores, against its record."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from .ranges import FiniteRange
from .version_options import version_options


@click.command(name="status")
@click.option(
    "--max-age",
    type=FiniteRange(min=0, min_open=True, max=1e6),
    metavar="HOURS",
    help="Report a live version that was last brought up to date longer ago.",
)
@click.option(
    "--orphans", is_flag=True, help="Count rows in Redis that are not stored offline: a scan of all its keys."
)
@click.option("--sweep", "sweeping", is_flag=True, help="Delete those rows first.")
@version_options
def command(
    max_age: float | None, orphans: bool, sweeping: bool, repo: Path, feature_set: str, as_json: bool
) -> None:
    """Compare the version record, the offline rows and Redis; the exit status is 3 if something is wrong.

    \b
    Example:
      sda-features status --repo shop/feature_repo --max-age 26 --json
    """
    from sda_features.feature_store.status import status, sweep
    from sda_features.feature_store.versions import open_versions

    with open_versions(repo, feature_set) as versions:
        swept = sweep(versions) if sweeping else 0
        found = status(
            versions, max_age=None if max_age is None else max_age * 3600, orphans=orphans or sweeping
        )
    if as_json:
        click.echo(json.dumps({**asdict(found), "swept": swept}))
    else:
        age = "" if found.age is None else f", brought up to date {found.age / 3600:.1f} h ago"
        click.echo(f"{feature_set}: live {found.live or 'none'}{age}; previous {found.previous or 'none'}")
        for slot in found.slots:
            writer = (
                f"  {'being written' if slot.writing else 'left'} by {slot.writer}" if slot.writer else ""
            )
            unknown = "" if slot.orphans is None else f"  {slot.orphans:,} orphans"
            click.echo(
                f"slot {slot.slot}  {slot.version or 'no complete version':<19}  {slot.recorded:>9,} recorded  "
                f"{slot.offline:>9,} offline  {slot.missing:,} not online{unknown}{writer}"
            )
        for node, (used, limit, _) in found.memory.items():
            click.echo(f"redis {node}  {used:,} bytes used of {f'{limit:,}' if limit else 'no limit'}")
        if found.last_change:
            change = found.last_change
            click.echo(f"last change  {change['at']}  {change['who']}  {change['action']}")
        if sweeping:
            click.echo(f"swept {swept:,} orphans")
        for problem in found.problems:
            click.echo(f"problem: {problem}", err=True)
    if found.problems:
        raise SystemExit(3)
