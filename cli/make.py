"""Verbs that make vectors: an adapter, what it is worth, what it writes to Feast and to files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sda_features.api import functions
from sda_features.api.vector_set import VectorSet
from sda_features.config import MANY, WIDEST

from .options import JSON, REPO, settings_options, show, vector_set, verb
from .ranges import COUNT, FOLDER, NAMES, PATH, SEEDS, Device, FiniteRange, OutputFile

QUANTIZATION = click.Choice(["nf4", "int8", "none"])
DTYPE = click.Choice(["auto", "float32", "bfloat16", "float16"])
TRUST_REMOTE_CODE = click.option(
    "--trust-remote-code", is_flag=True, help="Run Python code that ships with the model."
)
DEVICE = click.option("--device", type=Device(), help="Torch device.")


@verb(functions.adapt)
@click.argument("catalog")
@click.option("--output", "-o", type=FOLDER, required=True, help="Run folder to write.")
@settings_options(functions.adapt)
@click.option("--dry-run", is_flag=True, help="Say what the run would need and what fits; needs no weights.")
@click.option("--card", help="With --dry-run: plan for this GPU, e.g. A100-80, RTX4090 or 24GiB.")
@click.option("--resume", is_flag=True, help="Go on from the newest saved state of OUTPUT.")
@JSON
def adapt(as_json: bool, **values: Any) -> None:
    """Train MoDA adapters on the items of CATALOG and write OUTPUT/checkpoint.

    CATALOG is a parquet, JSONL or CSV file with an id column, text columns and an image column, as a
    path or an fsspec URL.
    Items that lack a text or a picture stay out of training and are listed in
    OUTPUT/catalog_report.jsonl.

    \b
    Example:
      sda-features adapt items.parquet --model Qwen/Qwen2.5-VL-7B-Instruct -o runs/sda
    """
    show(functions.adapt(progress=not as_json, **values), as_json)


@verb(functions.diagnose)
@click.argument("checkpoints", metavar="[CHECKPOINT]...", nargs=-1, type=PATH)
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
@click.option("--quantization", type=QUANTIZATION, help="Default: as in training, or nf4.")
@click.option("--dtype", type=DTYPE, help="Activations.")
@TRUST_REMOTE_CODE
@DEVICE
@click.option("--modules", type=NAMES, help="Linears whose B is examined.")
@click.option("--items", type=click.IntRange(2, MANY), help="Items to use.")
@click.option("--batch-size", type=click.IntRange(2, MANY), help="Items of one loss.")
@click.option(
    "--micro-batch-size", type=COUNT, help="Items encoded at a time; bounds memory, same gradients."
)
@click.option("--seed", type=SEEDS, help="Seed of the choice of items and of fresh adapters.")
@settings_options(functions.diagnose)
@click.option("--output", "-o", type=FOLDER, help="Folder for conflict.json, .md and .svg.")
@JSON
def diagnose(as_json: bool, **values: Any) -> None:
    """Measure whether text and pictures pull an adapter the same way (paper, section 3.3.3).

    A negative cosine between the gradients of the two modalities is a conflict: a step that helps
    one harms the other. Each CHECKPOINT is measured under its own loss and prompts, all on the same
    items.

    \b
    Example:
      sda-features diagnose runs/moda/checkpoint runs/lora/checkpoint --catalog items.parquet
      sda-features diagnose --adapter moda --adapter lora --model Qwen/Qwen2.5-VL-7B-Instruct --catalog items.parquet
    """
    show(functions.diagnose(progress=not as_json, **values), as_json)


@verb(VectorSet.materialize)
@click.argument("catalog", required=False)
@REPO
@click.option(
    "--vectors",
    type=click.Path(path_type=Path, exists=True),
    metavar="TABLE",
    help="Vectors of an encoder of your own instead of CATALOG: a parquet or Arrow file, or a folder of parquet files.",
)
@click.option("--text-vectors", metavar="COLUMN", help="Column of text vectors in TABLE.")
@click.option("--image-vectors", metavar="COLUMN", help="Column of picture vectors in TABLE.")
@click.option("--version", help="Version of the vectors in TABLE.  [default: a hash of the table]")
@click.option("--checkpoint", type=PATH, help="Checkpoint that `adapt` wrote.")
@click.option(
    "--model",
    help="Base model; with --checkpoint only if it moved, alone for vectors of a Qwen-VL, CLIP or SigLIP as it is.",
)
@click.option(
    "--quantization", type=QUANTIZATION, help="Default: as in training, or nf4; none for CLIP and SigLIP."
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "fast", "float32", "bfloat16", "float16"]),
    help="Activations; fast: bfloat16 where the processor multiplies it.",
)
@TRUST_REMOTE_CODE
@DEVICE
@click.option(
    "--dim",
    type=click.IntRange(1, WIDEST),
    help="Make vectors smaller, with the rotation stored in the checkpoint.",
)
@click.option("--feature-set", help="Feature set to write.  [default: sda; vanilla for --model]")
@click.option("--batch-size", type=COUNT, help="Sequences encoded together.")
@click.option("--shard-rows", type=COUNT, help="Items of one offline part.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    help="What encodes: this process, or workers of a Ray cluster (extra: ray).",
)
@click.option("--ray-address", help="Running cluster, e.g. auto.  [default: start one on this machine]")
@click.option(
    "--workers",
    type=click.IntRange(1, 100_000),
    help="Workers of --engine ray.  [default: one a GPU, or CPUs less one]",
)
@click.option(
    "--gpus-per-worker",
    type=FiniteRange(0, 1000),
    help="GPUs of a worker, may be a fraction.  [default: 1 if there are any]",
)
@click.option("--promote", is_flag=True, help="Serve the version as soon as it is complete.")
@click.option(
    "--max-removed",
    type=FiniteRange(0, 1),
    help="Share of stored items that may be gone from CATALOG; their vectors are deleted.",
)
@click.option("--repair", is_flag=True, help="Encode items again whose stored rows lie in damaged files.")
@click.option(
    "--again", multiple=True, metavar="ID", help="Encode this item again; may be given several times."
)
@settings_options(VectorSet.materialize)
@click.option("--report", type=OutputFile(), help="Write bad catalogue rows here (JSONL).")
@JSON
def materialize(repo: Path, feature_set: str | None, as_json: bool, **values: Any) -> None:
    """Encode the items of CATALOG and write their vectors to Feast, offline and online.

    CATALOG is a parquet, JSONL or CSV file or a folder of parquet files, as a path or an fsspec URL.

    Items whose content and version are stored already are skipped, so an interrupted run goes on
    where it stopped; items that are gone from CATALOG are deleted. Vectors of a new version are
    written beside those that are served, and served after `promote`; the first version is at once.

    \b
    Example:
      sda-features materialize items.parquet --checkpoint runs/sda/checkpoint --repo shop/feature_repo
      sda-features materialize items.parquet --model Qwen/Qwen2.5-VL-7B-Instruct --repo shop/feature_repo
      sda-features materialize items.parquet --model openai/clip-vit-large-patch14 --feature-set clip
      sda-features materialize --vectors vectors.parquet --text-vectors text --image-vectors image --version v7
    """
    vanilla = values["checkpoint"] is None and values["vectors"] is None
    vectors = vector_set(repo, feature_set or ("vanilla" if vanilla else "sda"))
    show(vectors.materialize(progress=not as_json, **values), as_json)


@verb(VectorSet.stream)
@click.argument("key")
@REPO
@click.option("--feature-set", default="sda", help="Feature set to write.")
@click.option("--checkpoint", type=PATH, help="Checkpoint that `adapt` wrote.")
@click.option("--model", help="Base model; see `materialize`.")
@click.option("--quantization", type=QUANTIZATION, help="See `materialize`.")
@DEVICE
@click.option("--url", help="Redis server with the stream.  [default: the repo's online store]")
@click.option("--group", help="Consumer group.")
@click.option("--consumer", help="Name of this process in the group.")
@click.option("--kafka", metavar="HOST:PORT", help="KEY is a topic of this Kafka; needs the extra kafka.")
@click.option("--kafka-config", type=PATH, help="File of its client's settings, NAME=VALUE.")
@click.option("--max-events", type=COUNT, help="Events written together.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a batch.")
@click.option("--once", is_flag=True, help="End when no event is left.")
@settings_options(VectorSet.stream)
def stream(repo: Path, feature_set: str, as_json: bool, once: bool, **values: Any) -> None:
    """Take upserts and deletions of items from the Redis Stream KEY and write their vectors within seconds.

    An entry is `item` with a row of the catalogue as JSON; with `op delete` the item is gone. It is
    acknowledged when offline and online store have it. The version has to be stored: run
    `materialize` first. With --kafka, KEY is a topic: a value is a row as JSON, a key without a value
    deletes the item of that id.

    \b
    Example:
      sda-features stream items --checkpoint runs/sda/checkpoint --repo shop/feature_repo
      redis-cli XADD items "*" item '{"item_id": "B1", "title": "oak table", "image": "b1.jpg"}'
      redis-cli XADD items "*" op delete item '{"item_id": "B1"}'
    """
    for done in vector_set(repo, feature_set).stream(**values):
        if done.written or done.deleted or done.rejected:
            show(done, as_json)
        elif once:
            return


@verb(functions.export)
@click.argument("checkpoint", type=PATH)
@click.option("--output", "-o", type=FOLDER, required=True, help="Folder to write.")
@click.option(
    "--for",
    "target",
    type=click.Choice(["conditional-generation", "base"]),
    help="Class to load over: AutoModelForImageTextToText, as vLLM does, or AutoModel.",
)
@click.option("--model", help="Base model, if it moved since training.")
@TRUST_REMOTE_CODE
@click.option("--merged", is_flag=True, help="Also write the base model with each adapter merged in.")
@click.option("--dtype", type=DTYPE, help="Dtype of merged weights; auto: the base model's.")
@JSON
def export(as_json: bool, **values: Any) -> None:
    """Write CHECKPOINT as two PEFT LoRA adapters, OUTPUT/text and OUTPUT/image.

    PEFT, vLLM and whatever else reads LoRA adapters can load them over the unquantised base model;
    see docs/export.md.

    \b
    Example:
      sda-features export runs/sda/checkpoint -o adapters
      sda-features export runs/sda/checkpoint -o adapters --merged --dtype bfloat16
    """
    show(functions.export(**values), as_json)
