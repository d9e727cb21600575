"""`sda-features materialize`: catalogue to vectors to Feast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sda_features.api.vector_set import VectorSet
from sda_features.config import WIDEST

from .options import JSON, REPO, settings_options, show, verb
from .ranges import COUNT, Device, FiniteRange, OutputFile
from .version_options import vector_set


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
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Checkpoint that `adapt` wrote.")
@click.option(
    "--model",
    help="Base model; with --checkpoint only if it moved, alone for vectors of a Qwen-VL, CLIP or SigLIP as it is.",
)
@click.option(
    "--quantization",
    type=click.Choice(["nf4", "int8", "none"]),
    help="Default: as in training, or nf4; none for CLIP and SigLIP.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "fast", "float32", "bfloat16", "float16"]),
    default="fast",
    help="Activations; fast: bfloat16 where the processor multiplies it.",
)
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that ships with the model.")
@click.option("--device", type=Device(), help="Torch device.")
@click.option(
    "--dim",
    type=click.IntRange(1, WIDEST),
    help="Make vectors smaller, with the rotation stored in the checkpoint.",
)
@click.option("--feature-set", help="Feature set to write.  [default: sda; vanilla for --model]")
@click.option("--batch-size", type=COUNT, default=32, help="Sequences encoded together.")
@click.option("--shard-rows", type=COUNT, default=1024, help="Items of one offline part.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
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
    default=0.1,
    help="Share of stored items that may be gone from CATALOG; their vectors are deleted.",
)
@click.option("--repair", is_flag=True, help="Encode items again whose stored rows lie in damaged files.")
@click.option(
    "--again", multiple=True, metavar="ID", help="Encode this item again; may be given several times."
)
@settings_options(VectorSet.materialize)
@click.option("--report", type=OutputFile(), help="Write bad catalogue rows here (JSONL).")
@JSON
def command(repo: Path, feature_set: str | None, as_json: bool, **values: Any) -> None:
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
