"""What the commands that train recommenders have in common: log, repo, preset, seeds, settings, protocol."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from sda_features.config import (
    PRESETS,
    SEED,
    EvaluationSettings,
    LogSettings,
    RecommenderSettings,
    recommender_settings,
)

from .options import collect, given, settings_options

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

MODELS = "sasrec,bert4rec,vbpr,slmrec"


def recommender_options(*, seeds: str) -> Callable[[Decorated], Decorated]:
    """Decorate a command with these options; `seeds` is the default of --seeds."""

    def decorate(function: Decorated) -> Decorated:
        decorators = [
            click.argument("interactions"),
            click.option(
                "--repo", type=click.Path(path_type=Path), default=".", show_default=True, help="Feast repo."
            ),
            click.option(
                "--preset",
                type=click.Choice(list(PRESETS)),
                default="sparse",
                show_default=True,
                help="Settings of a model that no option gives: sparse as Amazon reviews, dense as MovieLens.",
            ),
            click.option(
                "--seeds",
                default=seeds,
                show_default=True,
                metavar="A,B,...",
                callback=_integers,
                help="Seeds of initialisation, order, dropout and negatives; a run for each.",
            ),
            settings_options(LogSettings),
            settings_options(RecommenderSettings, skip=("seed",), defaults=False),
            settings_options(EvaluationSettings, prefix="eval"),
            click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
        ]
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def grid_arguments(models: list[str], values: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `train_grid` from a command's values: all but `output` and `features`."""
    chosen = given(RecommenderSettings, values)
    as_json = values["as_json"]
    return {
        "interactions": values["interactions"],
        "settings": {model: recommender_settings(model, values["preset"], **chosen) for model in models},
        "seeds": values["seeds"],
        "evaluation": EvaluationSettings.parse(**collect(EvaluationSettings, values, prefix="eval")),
        "log": LogSettings.parse(**collect(LogSettings, values)),
        "repo": values["repo"],
        "echo": lambda line: click.echo(line, err=True),
        "progress": not as_json,
    }


def names(ctx: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    """Callback: A,B,... as a list without repeats."""
    found = list(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
    if not found:
        raise click.BadParameter("expected at least one name", ctx, parameter)
    return found


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


def show_tables(
    name: str,
    output: Path,
    features: list[str],
    arguments: dict[str, Any],
    *,
    ours: int,
    ablation: bool = False,
    as_json: bool,
) -> None:
    """Train the grid, write its tables to `output` and print them; `ours` is the place of what is compared."""
    from sda_features.report.tables import differences_table
    from sda_features.workflows.paper_tables import differences, score_tables, train_grid, write_tables

    grid = train_grid(output=output, features=features, **arguments)
    labels = grid.features
    full = labels[ours]
    compared = differences(grid, full, [label for label in labels if label != full])
    tables = score_tables(grid, full=full if ablation else None)
    markdown = write_tables(output, name, grid, tables, compared)
    if as_json:
        click.echo((output / f"{name}.json").read_text(encoding="utf-8"))
        return
    click.echo(markdown)
    overall = [
        row for row in compared if row["metric"].startswith("ndcg") and not row["metric"].endswith("quintile")
    ]
    if overall:
        click.echo("\n" + differences_table(overall, (full, "other"), ("model", "against")))
    click.echo(f"\nwritten  {output / name}.json, .md, .tex; runs in {output / 'runs'}")
