"""What the commands that train recommenders have in common: log, repo, preset, seeds, settings, protocol."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import click

from sda_features.config import PRESETS, SEED

from .options import JSON, REPO, names, say, settings_options

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def recommender_options(call: Any) -> Callable[[Decorated], Decorated]:
    """Decorate a command with the options that all these calls of `Repo` have."""
    seeds = inspect.signature(call).parameters["seeds"].default

    def decorate(function: Decorated) -> Decorated:
        decorators = [
            click.argument("interactions"),
            REPO,
            click.option(
                "--preset",
                type=click.Choice(list(PRESETS)),
                default="sparse",
                help="Settings of a model that no option gives: sparse as Amazon reviews, dense as MovieLens.",
            ),
            click.option(
                "--seeds",
                default=",".join(map(str, seeds)),
                metavar="A,B,...",
                callback=_integers,
                help="Seeds of initialisation, order, dropout and negatives; a run for each.",
            ),
            settings_options(call),
            JSON,
        ]
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def training_arguments(as_json: bool) -> dict[str, Any]:
    """Where these calls say what they do: lines and bars on standard error."""
    return {"progress": not as_json, "echo": say}


def _integers(ctx: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    try:
        seeds = [int(part) for part in names(ctx, parameter, value)]
    except ValueError:
        seeds = [-1]
    if not all(0 <= seed <= SEED for seed in seeds):
        raise click.BadParameter(
            f"expected whole numbers from 0 to {SEED} such as 0,1,2, got {value!r}", ctx, parameter
        )
    return seeds
