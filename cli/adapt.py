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
from sda_features.errors import SettingsError

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
@click.option("--dry-run", is_flag=True, help="Say what the run would need and what fits; needs no weights.")
@click.option("--card", help="With --dry-run: plan for this GPU, e.g. A100-80, RTX4090 or 24GiB.")
@click.option("--resume", is_flag=True, help="Go on from the newest saved state of OUTPUT.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def command(
    catalog: str,
    output: Path,
    dry_run: bool,
    card: str | None,
    resume: bool,
    as_json: bool,
    **values: Any,
) -> None:
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
    if card and not dry_run:
        raise SettingsError("--card is for --dry-run: it names a GPU to plan for.")
    if dry_run:
        show_plan(settings, card, as_json)
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
                    "texts_cut": result.texts_cut,
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
    if result.texts_cut:
        click.echo(f"cut         {result.texts_cut:,} texts are longer than --max-text-tokens")
    trained_on = result.pairs - result.held_out
    click.echo(f"trained     {result.trainable_parameters:,} parameters on {trained_on:,} items")
    click.echo(
        f"loss        {result.loss:.4f} after {result.steps} steps, {result.items_per_second:.0f} items/s"
    )
    if recall := result.recall:
        click.echo(
            f"held out    {result.held_out} items, text to image R@1 {recall['recall@1']:.3f}, "
            f"R@10 {recall['recall@10']:.3f}, neighbours@10 {recall['neighbours@10']:.3f}, "
            f"at step {recall['step']}"
        )
    click.echo(f"checkpoint  {result.checkpoint}")


def show_plan(settings: AdaptSettings, card: str | None, as_json: bool) -> None:
    """Print what the run would train and need, and what fits on the GPU."""
    from sda_features.workflows import plan_adapt

    planned = plan_adapt(settings, card)
    best = planned.best
    if as_json:
        found = {**asdict(planned), "memory_bytes": planned.memory_bytes}
        click.echo(to_json({**found, "best": asdict(best) if best else None}))
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
    if planned.usable_bytes is None:
        return
    click.echo(f"card        {planned.card}, {planned.usable_bytes / 2**30:.1f} GiB to use")
    for fit in planned.fits:
        click.echo(
            f"  {fit.quantization:5} {'recomputed' if fit.gradient_checkpointing else 'kept':10} "
            + (
                f"micro batch {fit.micro_batch_size:4}, {fit.memory_bytes / 2**30:.1f} GiB"
                if fit.micro_batch_size
                else "does not fit"
            )
        )
    if best is None:
        click.echo("suggested   nothing fits: a smaller model, or shorter prompts and smaller pictures")
        return
    again = "" if best.gradient_checkpointing else "no-"
    click.echo(
        f"suggested   --quantization {best.quantization} --batch-size {settings.train.batch_size} "
        f"--micro-batch-size {best.micro_batch_size} --{again}gradient-checkpointing"
    )
