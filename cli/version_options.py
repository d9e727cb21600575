"""What the verbs about a feature set share: options, and the feature set they name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from sda_features.api.repo import Repo
from sda_features.api.settings_file import FILE_NAME
from sda_features.api.vector_set import VectorSet

from .options import JSON, REPO, VERSION

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def version_options(function: Decorated) -> Decorated:
    """Decorate a command with `--repo`, `--feature-set` and `--json`."""
    for option in (
        JSON,
        click.option("--feature-set", default="sda", help="Feature set."),
        REPO,
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
        VERSION,
    ):
        function = option(function)
    return function


def open_repo(repo: Path) -> Repo:
    """The repo, with the settings file that this command has read."""
    return Repo(repo, settings=click.get_current_context().meta[FILE_NAME])


def vector_set(repo: Path, feature_set: str) -> VectorSet:
    """A feature set of the repo."""
    return open_repo(repo)[feature_set]
