"""`sda-features demo`: the whole product in one walk, on a generated shop, without network or server.

Every step calls what the commands call. Only the data and the base model are made up, and said to be.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq

from sda_features.artifacts import write_json
from sda_features.catalog.prompts import text_prompt
from sda_features.catalog.rows import Catalog
from sda_features.config import AdaptSettings, CatalogSettings
from sda_features.demo.catalogue import make_catalogue, text_fields
from sda_features.demo.gains import measure
from sda_features.demo.model import build_tiny_model
from sda_features.demo.pretrain import pretrain
from sda_features.demo.purchases import make_interactions
from sda_features.errors import FeatureStoreError, SettingsError
from sda_features.evaluation.retrieval import recall_at_k

MARKER = ".sda-features-demo"  # allows the next demo to replace the folder
FEATURE_STORE = """\
project: demo
provider: local
registry: data/registry.db
online_store:
  type: redis
  connection_string: {host}:{port}
offline_store:
  type: file
entity_key_serialization_version: 3
"""
TRAIN = {"steps": 100, "batch_size": 64, "learning_rate": 3e-3, "warmup_steps": 5}
ONE_MODALITY = 0.6  # share of listings with a text alone or a picture alone, as a marketplace has them


@dataclass(frozen=True)
class Shop:
    """The generated inputs, on disk."""

    catalogue: Path
    interactions: Path
    model: Path

    @property
    def catalog_settings(self) -> CatalogSettings:
        """How the catalogue is read."""
        return CatalogSettings.parse(path=self.catalogue, max_bad_rows=0.7)


def walk(output: Path, echo: Callable[[str], None], *, seed: int = 0, progress: bool = True) -> None:
    """Generate, adapt, apply, materialize, look up, train; print what it gained at the end.

    Args:
        output: folder for everything; an earlier demo there is replaced.
        echo: prints a line.
        seed: of data, model and training.
        progress: show bars on standard error.

    Raises:
        SettingsError: `output` holds something else than an earlier demo.
        SDAError: any step failed; the message is that of the step.
    """
    from sda_features.serving import EmbeddingClient
    from sda_features.serving.embedded import embedded_redis

    started = time.monotonic()
    _clear(output)
    echo("This shop is GENERATED: its catalogue, its customers, and its tiny base model.")
    echo("The figures show that the product works, not what it gains on your data.\n")

    shop = _generate(output, echo, seed)
    _adapt(shop, output, echo, seed, progress)
    with embedded_redis() as (host, port):
        repo = _feast_repo(output / "feature_repo", host, port, echo)
        recall = _materialize(shop, repo, output, echo, progress)
        item_ids = _item_ids(shop, 300)
        with EmbeddingClient.from_repo(repo, "sda") as client:
            before = time.perf_counter()
            found = client.get(item_ids)
            milliseconds = 1e3 * (time.perf_counter() - before)
        echo(
            f"5. lookup       {len(item_ids)} items in {milliseconds:.1f} ms: text {found.text.shape}, "
            f"{found.text_found.sum()} found; image {found.image.shape}, {found.image_found.sum()} found"
        )
        gains = measure(shop.interactions, repo, output / "runs", echo, seed=seed, progress=progress)
    echo(
        f"\nThe next purchase of {gains.users['all']:,} customers, ranked in the whole catalogue; "
        f"{gains.users['tail']} took a tail item.\n"
        "Vectors alone: by a mean of the history's vectors, nothing trained.\n"
    )
    echo(gains.tables(recall))
    results = {"seed": seed, "text_to_image_recall@10": recall, **asdict(gains)}
    write_json(output / "results.json", results)
    echo(f"\nEverything is in {output}/ ({time.monotonic() - started:.0f} s):")
    for name, meaning in {
        "items.parquet, interactions.parquet, model/": "the generated shop",
        "adapt/": "checkpoint, training_log.jsonl, catalog_report.jsonl",
        "feature_repo/": "a Feast repo with the offline store (the online server has ended)",
        "runs/": "SASRec runs: manifest.json, model.safetensors, items.parquet, ranks.npz, ...",
        "results.json": "the tables' numbers",
    }.items():
        echo(f"  {name:<45}{meaning}")


def _generate(output: Path, echo: Callable[[str], None], seed: int) -> Shop:
    shop = Shop(output / "items.parquet", output / "interactions.parquet", output / "model")
    catalogue = make_catalogue(seed=seed, one_modality=ONE_MODALITY)
    catalogue.write(shop.catalogue)
    log = make_interactions(catalogue, seed=seed)
    pq.write_table(log, shop.interactions)
    settings = AdaptSettings.model_fields["prompts"].default
    texts = [prompt for fields in text_fields(catalogue) if (prompt := text_prompt(fields, settings))]
    build_tiny_model(shop.model, texts, seed=seed)
    accuracy = pretrain(shop.model, seed=seed)
    echo(
        f"1. generate     {len(catalogue.item_ids)} items, {ONE_MODALITY:.0%} of them with a text alone or a picture "
        f"alone, {len(log):,} interactions, a tiny Qwen2.5-VL that tells "
        f"{accuracy['text']:.0%} of what texts say and {accuracy['image']:.0%} of what pictures show"
    )
    return shop


def _adapt(shop: Shop, output: Path, echo: Callable[[str], None], seed: int, progress: bool) -> None:
    from sda_features.workflows import adapt

    settings = AdaptSettings.parse(
        catalog=shop.catalog_settings,
        backbone={"model": str(shop.model), "quantization": "nf4"},
        behaviour={"interactions": shop.interactions},
        train={**TRAIN, "seed": seed},
    )
    result = adapt(settings, output / "adapt", progress)
    echo(
        f"2. adapt        nf4, MoDA, CMSA, the log as a second teacher: {result.trainable_parameters:,} parameters, "
        f"{result.items_per_second:.0f} items/s; {result.report}"
    )


def _feast_repo(repo: Path, host: str, port: int, echo: Callable[[str], None]) -> Path:
    from sda_features.feature_store.init import init_repo

    repo.mkdir()
    (repo / "feature_store.yaml").write_text(FEATURE_STORE.format(host=host, port=port), encoding="utf-8")
    result = init_repo(repo, feature_sets=["sda", "vanilla"])
    feast = Path(sys.executable).with_name("feast")
    applied = subprocess.run([feast, "apply"], cwd=repo, capture_output=True, text=True, check=False)
    if applied.returncode:
        raise FeatureStoreError(f"`feast apply` failed in {repo}:\n{applied.stdout}{applied.stderr}")
    echo(f"3. feast apply  {', '.join(result.views)} on an embedded Valkey at {host}:{port}")
    return repo


def _materialize(
    shop: Shop, repo: Path, output: Path, echo: Callable[[str], None], progress: bool
) -> dict[str, float | None]:
    """Write both feature sets; return text -> image R@10 of each, read back from the offline store."""
    from sda_features.feature_store.matrices import load_vectors
    from sda_features.lvlm.checkpoint import load_checkpoint, read_checkpoint, unadapted
    from sda_features.workflows import materialize

    checkpoint = output / "adapt" / "checkpoint"
    adapted = read_checkpoint(checkpoint).settings
    loaders = {
        "vanilla": lambda: unadapted(adapted.backbone, adapted.prompts),
        "sda": lambda: load_checkpoint(checkpoint),
    }
    recall = {}
    for feature_set, load in loaders.items():
        result = materialize(repo, feature_set, shop.catalog_settings, load, progress=progress)
        echo(f"4. materialize  {result.online_rows} items in {result.view}, version {result.version}")
        vectors = load_vectors(repo, feature_set, _item_ids(shop))
        both = vectors.text_found & vectors.image_found
        recall[feature_set] = recall_at_k(vectors.text[both], vectors.image[both], 10)
    return recall


def _item_ids(shop: Shop, most: int | None = None) -> list[str]:
    """The first ids of the catalogue that can be used, or all."""
    return [item.item_id for item in islice(Catalog(shop.catalog_settings).items(), most)]


def _clear(output: Path) -> None:
    if output.exists() and any(output.iterdir()):
        if not (output / MARKER).exists():
            raise SettingsError(
                f"{output} is not empty and holds no earlier demo; name another folder with --output."
            )
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARKER).write_text(
        "Made by `sda-features demo`, which may delete this folder.\n", encoding="utf-8"
    )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
