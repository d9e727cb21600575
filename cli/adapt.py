"""`sda-features adapt`: train an adapter on a catalogue."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from sda_features.artifacts import to_json
from sda_features.config import (
    AdapterSettings,
    AdaptSettings,
    BackboneSettings,
    BehaviourSettings,
    CatalogSettings,
    LossSettings,
    ProjectionSettings,
    PromptSettings,
    TrainSettings,
)

from .options import collect, settings_options
from .ranges import FOLDER


@click.command()
@click.argument("catalog")
@click.option("--output", "-o", type=FOLDER, required=True, help="Run folder to write.")
@settings_options(BackboneSettings)
@settings_options(AdapterSettings, prefix="adapter")
@settings_options(LossSettings, prefix="loss")
@settings_options(BehaviourSettings)
@settings_options(ProjectionSettings, prefix="projection")
@settings_options(TrainSettings)
@settings_options(CatalogSettings, skip=("path",))
@settings_options(PromptSettings)
@click.option("--dry-run", is_flag=True, help="Load and measure, train nothing, write nothing.")
@click.option("--resume", is_flag=True, help="Go on from the newest saved state of OUTPUT.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def command(catalog: str, output: Path, dry_run: bool, resume: bool, as_json: bool, **values: Any) -> None:
    """Train MoDA adapters on the items of CATALOG and write OUTPUT/checkpoint.

    CATALOG is a parquet, JSONL or CSV file with an id column, text columns and an image column, as a
    path or an fsspec URL.
    Items that lack a text or a picture stay out of training and are listed in
    OUTPUT/catalog_report.jsonl.

    \b
    Example:
      sda-features adapt items.parquet --model Qwen/Qwen2.5-VL-7B-Instruct -o runs/sda
    """
    settings = AdaptSettings.parse(
        catalog=CatalogSettings.parse(path=catalog, **collect(CatalogSettings, values)),
        backbone=BackboneSettings.parse(**collect(BackboneSettings, values)),
        adapter=AdapterSettings.parse(**collect(AdapterSettings, values, prefix="adapter")),
        loss=LossSettings.parse(**collect(LossSettings, values, prefix="loss")),
        behaviour=BehaviourSettings.parse(**collect(BehaviourSettings, values)),
        projection=ProjectionSettings.parse(**collect(ProjectionSettings, values, prefix="projection")),
        train=TrainSettings.parse(**collect(TrainSettings, values)),
        prompts=PromptSettings.parse(**collect(PromptSettings, values)),
    )
    if dry_run:
        show_plan(settings, as_json)
        return
    from sda_features.workflows import adapt

    result = adapt(settings, output, progress=not as_json, resume=resume)
    if as_json:
        click.echo(
            to_json(
                {
                    "checkpoint": str(result.checkpoint),
                    "pairs": result.pairs,
                    "trainable_parameters": result.trainable_parameters,
                    "steps": result.steps,
                    "loss": result.loss,
                    "held_out": {"items": result.held_out, **result.recall},
                    "items_per_second": result.items_per_second,
                    "bad_rows": result.report.bad_rows,
                    "finished_before": result.finished_before,
                }
            )
        )
        return
    if result.finished_before:
        click.echo(f"finished    the run has ended after {result.steps} steps; nothing was done")
        click.echo(f"checkpoint  {result.checkpoint}")
        return
    click.echo(f"catalogue   {result.report}")
    trained_on = result.pairs - result.held_out
    click.echo(f"trained     {result.trainable_parameters:,} parameters on {trained_on:,} items")
    click.echo(
        f"loss        {result.loss:.4f} after {result.steps} steps, {result.items_per_second:.0f} items/s"
    )
    if recall := result.recall:
        click.echo(
            f"held out    {result.held_out} items, text to image R@1 {recall['recall@1']:.3f}, "
            f"R@10 {recall['recall@10']:.3f} at step {recall['step']}"
        )
    click.echo(f"checkpoint  {result.checkpoint}")


def show_plan(settings: AdaptSettings, as_json: bool) -> None:
    """Print what the run would train and need."""
    from sda_features.workflows import plan_adapt

    planned = plan_adapt(settings)
    if as_json:
        click.echo(to_json({**asdict(planned), "memory_bytes": planned.memory_bytes}))
        return
    share = planned.trainable_parameters / planned.total_parameters
    click.echo(
        f"trainable   {planned.trainable_parameters:,} of {planned.total_parameters:,} parameters ({share:.2%})"
    )
    click.echo(f"tokens      {planned.text_tokens:.0f} a text, {planned.image_tokens:.0f} a picture")
    click.echo(f"steps       {settings.train.steps:,}, {planned.steps_per_epoch:,.0f} show every item once")
    parts = {
        "base": planned.base_bytes,
        "optimiser": planned.optimiser_bytes,
        "activations": planned.activation_bytes,
    }
    detail = ", ".join(f"{name} {size / 2**20:,.0f}" for name, size in parts.items())
    click.echo(f"memory      about {planned.memory_bytes / 2**20:,.0f} MiB ({detail})")
