"""`sda-features materialize`: catalogue to vectors to Feast."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sda_features.artifacts import to_json
from sda_features.config import WIDEST, BackboneSettings, CatalogSettings, PromptSettings
from sda_features.errors import SettingsError

from .options import collect, settings_options
from .ranges import COUNT, Device, FiniteRange, OutputFile

if TYPE_CHECKING:
    from sda_features.lvlm.item_encoder import ItemEncoder


@click.command()
@click.argument("catalog", required=False)
@click.option("--repo", type=click.Path(path_type=Path), default=".", show_default=True, help="Feast repo.")
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
    show_default=True,
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
@click.option("--batch-size", type=COUNT, default=32, show_default=True, help="Sequences encoded together.")
@click.option("--shard-rows", type=COUNT, default=1024, show_default=True, help="Items of one offline part.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
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
    show_default=True,
    help="Share of stored items that may be gone from CATALOG; their vectors are deleted.",
)
@click.option("--repair", is_flag=True, help="Encode items again whose stored rows lie in damaged files.")
@click.option(
    "--again", multiple=True, metavar="ID", help="Encode this item again; may be given several times."
)
@settings_options(CatalogSettings, skip=("path",))
@click.option("--report", type=OutputFile(), help="Write bad catalogue rows here (JSONL).")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def command(
    catalog: str | None,
    repo: Path,
    vectors: Path | None,
    text_vectors: str | None,
    image_vectors: str | None,
    version: str | None,
    checkpoint: Path | None,
    model: str | None,
    quantization: str | None,
    dtype: str | None,
    device: str | None,
    trust_remote_code: bool,
    dim: int | None,
    feature_set: str | None,
    batch_size: int,
    shard_rows: int,
    engine: str,
    ray_address: str | None,
    workers: int | None,
    gpus_per_worker: float | None,
    promote: bool,
    max_removed: float,
    repair: bool,
    again: tuple[str, ...],
    report: Path | None,
    as_json: bool,
    **values: Any,
) -> None:
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
    given_vectors = (text_vectors, image_vectors, version)
    if (catalog is None) == (vectors is None) or (vectors is None and any(given_vectors)):
        raise SettingsError(
            "Give CATALOG, or --vectors with --text-vectors, --image-vectors or both; --version goes with --vectors."
        )
    if vectors is not None and (checkpoint, model, dim) != (None, None, None):
        raise SettingsError("--vectors are stored as they are: leave out --checkpoint, --model and --dim.")
    if vectors is not None and engine != "local":
        raise SettingsError("--vectors need no encoding: leave out --engine.")
    if vectors is not None and not (text_vectors or image_vectors):
        raise SettingsError("Name the columns of --vectors with --text-vectors, --image-vectors or both.")
    if vectors is None and checkpoint is None and model is None:
        raise SettingsError("Give --checkpoint (adapted vectors) or --model (vanilla vectors).")
    if vectors is None and checkpoint is None and dim is not None:
        raise SettingsError("--dim needs a --checkpoint: it uses the rotation that `adapt` stored there.")
    if engine == "local" and (ray_address, workers, gpus_per_worker) != (None, None, None):
        raise SettingsError("--ray-address, --workers and --gpus-per-worker are for --engine ray.")
    if model is not None and Path(model).exists():
        model = str(Path(model).resolve())  # a worker has a working directory of its own
    given: dict[str, Any] = {"model": model, "quantization": quantization, "dtype": dtype, "device": device}
    given |= {"trust_remote_code": trust_remote_code or None}
    overrides = {name: value for name, value in given.items() if value is not None}
    from sda_features.workflows import materialize
    from sda_features.workflows.engines import Engine, local_engine
    from sda_features.workflows.given_vectors import VectorTable, version_of

    chosen: Engine = local_engine
    if engine == "ray":
        from sda_features.workflows.ray_engine import ray_engine

        chosen = partial(ray_engine, address=ray_address, workers=workers, gpus_per_worker=gpus_per_worker)
    source: CatalogSettings | VectorTable
    if vectors is not None:
        id_column = values.get("id_column") or "item_id"
        source = VectorTable(vectors, id_column, text_vectors, image_vectors, version or version_of(vectors))
    else:
        source = CatalogSettings.parse(path=catalog, **collect(CatalogSettings, values))
    result = materialize(
        repo,
        feature_set or ("vanilla" if checkpoint is None and vectors is None else "sda"),
        source,
        partial(load_encoder, checkpoint and checkpoint.resolve(), dim, overrides, feature_set),
        engine=chosen,
        batch_size=batch_size,
        shard_rows=shard_rows,
        promote=promote,
        max_removed=max_removed,
        repair=repair,
        again=again,
        progress=not as_json,
    )
    if report is not None:
        result.report.write(report)
    if as_json:
        click.echo(
            to_json(
                {
                    "view": result.view,
                    "version": result.version,
                    "live": result.live,
                    "encoded": result.encoded,
                    "unchanged": result.unchanged,
                    "removed": result.removed,
                    "texts_cut": result.texts_cut,
                    "online_rows": result.online_rows,
                    "bad_rows": result.report.bad_rows,
                }
            )
        )
        return
    click.echo(f"catalogue  {result.report}")
    click.echo(
        f"encoded    {result.encoded:,} items, {result.unchanged:,} unchanged, {result.removed:,} removed"
    )
    if result.texts_cut:
        click.echo(
            f"texts      {result.texts_cut:,} are longer than the model reads; their ends were left out"
        )
    click.echo(f"online     {result.online_rows:,} items in {result.view}, version {result.version}")
    if result.live != result.version:
        click.echo(
            f"live       {result.live}; to serve the new version: sda-features promote {result.version}"
        )


def load_encoder(
    checkpoint: Path | None, dim: int | None, overrides: dict[str, Any], feature_set: str | None
) -> ItemEncoder:
    """The encoder that the options of `materialize` and `stream` name."""
    from sda_features.lvlm.checkpoint import load_checkpoint, pretrained
    from sda_features.lvlm.dual_encoder import DualEncoder

    if checkpoint is not None:
        return load_checkpoint(checkpoint, dim, **overrides)
    loaded = pretrained(BackboneSettings.parse(**overrides), PromptSettings())
    if feature_set is None and isinstance(loaded, DualEncoder):
        raise SettingsError(
            f"Expected --feature-set for the vectors of {overrides['model']}, such as clip: the default, vanilla, is "
            "for unadapted Qwen-VL models. Nothing was written."
        )
    return loaded
