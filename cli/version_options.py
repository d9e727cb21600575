"""What the verbs about versions share: options, and the table of versions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sda_features.artifacts import to_json

if TYPE_CHECKING:
    from sda_features.feature_store.lifecycle import VersionState

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def version_options(function: Decorated) -> Decorated:
    """Decorate a command with `--repo`, `--feature-set` and `--json`."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object."),
        click.option("--feature-set", default="sda", show_default=True, help="Feature set."),
        click.option(
            "--repo", type=click.Path(path_type=Path), default=".", show_default=True, help="Feast repo."
        ),
    ):
        function = option(function)
    return function


def space_options(function: Decorated) -> Decorated:
    """Decorate a command with `--version` and `--against`, the two sides of a comparison."""
    for option in (
        click.option(
            "--against",
            metavar="[SET][@VERSION]",
            help="Compare with another feature set or version; @ alone is the live version.",
        ),
        click.option("--version", "version", help="Adapter version.  [default: the live one]"),
    ):
        function = option(function)
    return function


def show_versions(states: Sequence[VersionState], feature_set: str, as_json: bool) -> None:
    """Print versions, one a line."""
    if as_json:
        versions = [asdict(state) for state in states]
        click.echo(to_json({"feature_set": feature_set, "versions": versions}))
        return
    rows = [
        [state.version, str(state.slot), state.state, f"{state.items:,}", str(state.dim), state.written]
        for state in states
    ]
    if rows:
        from sda_features.report.tables import text_table

        aligned = ["left", "right", "left", "right", "right", "left"]
        click.echo(text_table(rows, ["version", "slot", "state", "items", "dimension", "written"], aligned))
    else:
        click.echo(f"No version of {feature_set} is stored. Write one with `sda-features materialize`.")
