"""`sda-features diagnose`: gradient conflict between text and pictures."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from sda_features.artifacts import check_folder, to_json
from sda_features.config import MANY, AdapterSettings, BackboneSettings, CatalogSettings
from sda_features.errors import SettingsError

from .options import collect, settings_options
from .ranges import COUNT, FOLDER, SEEDS, Device


@click.command(name="diagnose")
@click.argument("checkpoints", metavar="[CHECKPOINT]...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--catalog",
    metavar="PATH_OR_URL",
    required=True,
    help="Catalogue to take items from; a path or an fsspec URL.",
)
@click.option(
    "--adapter",
    "kinds",
    multiple=True,
    type=click.Choice(["moda", "lora"]),
    help="Also a fresh adapter of this kind over --model, untrained; may be repeated.",
)
@click.option("--model", help="Base model; with checkpoints only if it moved.")
@click.option(
    "--quantization", type=click.Choice(["nf4", "int8", "none"]), help="Default: as in training, or nf4."
)
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), help="Activations.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that ships with the model.")
@click.option("--device", type=Device(), help="Torch device.")
@click.option("--modules", default="q_proj,k_proj", show_default=True, help="Linears whose B is examined.")
@click.option("--items", type=click.IntRange(2, MANY), default=256, show_default=True, help="Items to use.")
@click.option(
    "--batch-size", type=click.IntRange(2, MANY), default=64, show_default=True, help="Items of one loss."
)
@click.option(
    "--micro-batch-size",
    type=COUNT,
    default=16,
    show_default=True,
    help="Items encoded at a time; bounds memory, same gradients.",
)
@click.option(
    "--seed",
    type=SEEDS,
    default=0,
    show_default=True,
    help="Seed of the choice of items and of fresh adapters.",
)
@settings_options(CatalogSettings, skip=("path",))
@click.option("--output", "-o", type=FOLDER, help="Folder for conflict.json, .md and .svg.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def command(
    checkpoints: tuple[Path, ...],
    catalog: str,
    kinds: tuple[Any, ...],
    model: str | None,
    quantization: str | None,
    dtype: str | None,
    device: str | None,
    trust_remote_code: bool,
    modules: str,
    items: int,
    batch_size: int,
    micro_batch_size: int,
    seed: int,
    output: Path | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Measure whether text and pictures pull an adapter the same way (paper, section 3.3.3).

    A negative cosine between the gradients of the two modalities is a conflict: a step that helps
    one harms the other. Each CHECKPOINT is measured under its own loss and prompts, all on the same
    items.

    \b
    Example:
      sda-features diagnose runs/moda/checkpoint runs/lora/checkpoint --catalog items.parquet
      sda-features diagnose --adapter moda --adapter lora --model Qwen/Qwen2.5-VL-7B-Instruct --catalog items.parquet
    """
    given: dict[str, Any] = {"model": model, "quantization": quantization, "dtype": dtype, "device": device}
    given |= {"trust_remote_code": trust_remote_code or None}
    overrides = {name: value for name, value in given.items() if value is not None}
    if not (checkpoints or kinds):
        raise SettingsError("Give a CHECKPOINT, or --adapter with --model for an untrained adapter.")
    if kinds and model is None:
        raise SettingsError(
            "--adapter starts an untrained adapter over a base model; name that with --model."
        )
    from sda_features.catalog.rows import Catalog
    from sda_features.report.conflict import CONFLICT_FILES, conflict_table, json_rows, write_conflict

    if output is not None:
        check_folder(output, CONFLICT_FILES, "an earlier diagnosis")
    opened = Catalog(CatalogSettings.parse(path=catalog, **collect(CatalogSettings, values)))
    from sda_features.lvlm.diagnostics import diagnose_on_catalog, fresh, trained

    found = diagnose_on_catalog(
        [
            *(partial(trained, checkpoint, **overrides) for checkpoint in checkpoints),
            *(
                partial(fresh, AdapterSettings(kind=kind), BackboneSettings.parse(**overrides), seed)
                for kind in kinds
            ),
        ],
        opened,
        modules=[name.strip() for name in modules.split(",") if name.strip()],
        items=items,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        seed=seed,
        progress=not as_json,
    )
    rows = [asdict(conflict) for conflict in found]
    if output is not None:
        write_conflict(output, rows)
    if as_json:
        click.echo(to_json({"conflict": json_rows(rows)}))
        return
    click.echo(conflict_table(rows))
