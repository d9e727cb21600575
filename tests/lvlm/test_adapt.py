"""`adapt` from catalogue to vectors, through real files and a real tiny model."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from sda_features.catalog.rows import Catalog
from sda_features.config import AdaptSettings, PromptSettings
from sda_features.errors import CatalogError, CheckpointError, SettingsError
from sda_features.lvlm.checkpoint import load_checkpoint, unadapted
from sda_features.lvlm.encode import EncodedItems, encode_items
from sda_features.lvlm.finetune import AdaptResult
from sda_features.lvlm.plan import Plan
from sda_features.workflows import adapt, plan_adapt
from tests.lvlm.conftest import picture
from tests.shop import catalog as catalog_settings


def write_catalogue(path: Path, count: int = 14) -> Path:
    rows = []
    for n in range(count):
        stream = io.BytesIO()
        picture(n, (56 + 28 * (n % 3), 56)).save(stream, "PNG")
        rows.append({"item_id": f"i{n}", "title": f"item {'long ' * (n % 4)}{n}", "image": stream.getvalue()})
    rows[3]["image"] = b"broken"
    rows[4]["title"] = None
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def adapt_settings(catalogue: Path, model: Path, **changes: dict[str, Any]) -> AdaptSettings:
    values: dict[str, dict[str, Any]] = {
        "catalog": {"path": catalogue, "max_bad_rows": 0.5},
        "backbone": {"model": str(model), "quantization": "nf4", "device": "cpu"},
        "adapter": {},
        "train": {"steps": 4, "batch_size": 6, "learning_rate": 1e-2, "warmup_steps": 1},
    }
    for stage, change in changes.items():
        values.setdefault(stage, {}).update(change)
    return AdaptSettings.parse(**values)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_catalogue(tmp_path_factory.mktemp("catalogue") / "items.parquet")


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, catalogue: Path, tiny_models: dict[str, Path]
) -> AdaptResult:
    settings = adapt_settings(catalogue, tiny_models["qwen2_5_vl"])
    return adapt(settings, tmp_path_factory.mktemp("run"), progress=False)


def test_texts_that_the_model_reads_in_part_are_counted(
    tmp_path: Path, run: AdaptResult, catalogue: Path, tiny_models: dict[str, Path]
) -> None:
    assert run.texts_cut == 0
    settings = adapt_settings(
        catalogue, tiny_models["qwen2_5_vl"], prompts={"max_text_tokens": 8}, train={"steps": 1}
    )
    cut = adapt(settings, tmp_path / "run", progress=False)
    assert cut.texts_cut == cut.pairs + 1  # one item has a text alone
    again = adapt(settings, tmp_path / "run", progress=False, resume=True)
    assert (again.finished_before, again.texts_cut) == (True, cut.texts_cut)


def vectors(catalogue: Path, checkpoint: Path, **options: Any) -> list[EncodedItems]:
    """Encode over unquantised weights: 4-bit kernels on the CPU depend on the batch in the fourth digit."""
    catalog = Catalog(catalog_settings(catalogue))
    return list(encode_items(load_checkpoint(checkpoint, quantization="none"), catalog.items(), **options))


def test_run_folder_holds_log_report_and_a_complete_checkpoint(run: AdaptResult) -> None:
    folder = run.checkpoint.parent
    assert sorted(path.name for path in folder.iterdir()) == [
        "catalog_report.jsonl",
        "checkpoint",
        "training_log.jsonl",
    ]
    assert sorted(path.name for path in run.checkpoint.iterdir()) == [
        "README.md",
        "adapter.safetensors",
        "manifest.json",
        "preprocessing.json",
        "rotation.safetensors",
        "settings.json",
    ]
    log = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == [0, 1, 2, 3]
    assert all(0 <= record["teacher_entropy"] <= 1 for record in log)
    assert run.pairs == 12
    assert run.report.bad_rows == 2
    manifest = json.loads((run.checkpoint / "manifest.json").read_text())
    assert manifest["data"]["pairs"] == 12
    card = (run.checkpoint / "README.md").read_text()
    assert manifest["base_model"]["sha256"] in card
    assert "4 steps of 6 items" in card
    keys = load_file(run.checkpoint / "adapter.safetensors").keys()
    assert {key.rsplit(".", 1)[1] for key in keys} == {"A", "B", "embedding", "weight", "bias"}
    assert len(keys) == 2 * 7 * 2 + 3


def test_the_same_seed_gives_the_same_weights_and_training_changes_them(
    run: AdaptResult, tmp_path: Path, catalogue: Path, tiny_models: dict[str, Path]
) -> None:
    again = adapt(adapt_settings(catalogue, tiny_models["qwen2_5_vl"]), tmp_path, progress=False)
    first, second = (load_file(r.checkpoint / "adapter.safetensors") for r in (run, again))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert all(np.abs(first[name]).max() > 0 for name in first)


def test_vectors_do_not_depend_on_batches_or_shards_and_missing_modalities_are_not_found(
    run: AdaptResult, catalogue: Path
) -> None:
    (whole,) = vectors(catalogue, run.checkpoint, batch_size=16)
    parts = vectors(catalogue, run.checkpoint, batch_size=3, shard_rows=5)
    assert [len(part.item_ids) for part in parts] == [5, 5, 4]
    assert whole.item_ids == [f"i{n}" for n in range(14)]
    np.testing.assert_allclose(np.concatenate([part.text for part in parts]), whole.text, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([part.image for part in parts]), whole.image, atol=1e-5)
    assert np.flatnonzero(~whole.image_found).tolist() == [3]
    assert np.flatnonzero(~whole.text_found).tolist() == [4]
    np.testing.assert_allclose(np.linalg.norm(whole.text[whole.text_found], axis=1), 1, atol=1e-5)
    assert not whole.text[4].any()


def test_a_checkpoint_changes_vectors_and_version(
    run: AdaptResult, catalogue: Path, tiny_models: dict[str, Path]
) -> None:
    settings = adapt_settings(catalogue, tiny_models["qwen2_5_vl"]).backbone
    plain, adapted = unadapted(settings, PromptSettings()), load_checkpoint(run.checkpoint)
    assert plain.version != adapted.version
    assert load_checkpoint(run.checkpoint).version == adapted.version
    assert load_checkpoint(run.checkpoint, quantization="none").version != adapted.version
    catalog = Catalog(catalog_settings(catalogue))
    (before,), (after,) = (list(encode_items(loaded, catalog.items())) for loaded in (plain, adapted))
    assert np.abs(before.text - after.text).max() > 1e-3


def test_a_smaller_dimension_is_a_version_of_its_own_and_keeps_neighbours(
    run: AdaptResult, catalogue: Path
) -> None:
    whole = load_checkpoint(run.checkpoint)
    rotated, small = (load_checkpoint(run.checkpoint, dim) for dim in (whole.dim, 8))
    assert len({loaded.version for loaded in (whole, rotated, small)}) == 3
    catalog = Catalog(catalog_settings(catalogue))
    before, turned, less = (
        next(iter(encode_items(loaded, catalog.items()))) for loaded in (whole, rotated, small)
    )
    np.testing.assert_allclose(turned.text @ turned.image.T, before.text @ before.image.T, atol=1e-4)
    assert less.text.shape == (14, 8)
    np.testing.assert_allclose(np.linalg.norm(less.text[less.text_found], axis=1), 1, atol=1e-5)


def test_a_dimension_needs_a_rotation_that_reaches_it(copy_of_run: Path) -> None:
    with pytest.raises(SettingsError, match="Expected --dim from 1 to 64.*got 65"):
        load_checkpoint(copy_of_run, 65)
    (copy_of_run / "rotation.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no rotation.safetensors, which --dim needs"):
        load_checkpoint(copy_of_run, 8)
    assert load_checkpoint(copy_of_run).dim == 64


@pytest.fixture
def copy_of_run(run: AdaptResult, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run.checkpoint, tmp_path / "checkpoint"))


def test_another_base_model_is_refused(
    copy_of_run: Path, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    from sda_features.demo.model import build_tiny_model

    other = tmp_path / "other"
    build_tiny_model(other, ["another vocabulary"], seed=5, hidden_size=64, layers=2)
    with pytest.raises(CheckpointError, match="adapts the base model .*Give the right one with --model"):
        load_checkpoint(copy_of_run, model=str(other))


def test_changed_preprocessing_is_refused(copy_of_run: Path) -> None:
    path = copy_of_run / "preprocessing.json"
    path.write_text(path.read_text().replace("assistant", "helper"))
    with pytest.raises(CheckpointError, match="tokenizer, chat template or image processor"):
        load_checkpoint(copy_of_run)


def test_damage_is_noticed(copy_of_run: Path) -> None:
    weights = copy_of_run / "adapter.safetensors"
    tensors = load_file(weights)
    tensors["gates.bias"] = tensors["gates.bias"] + 1
    save_file(tensors, weights)
    with pytest.raises(CheckpointError, match="does not match the hash"):
        load_checkpoint(copy_of_run)


@pytest.mark.parametrize("name", ["settings.json", "manifest.json", "preprocessing.json"])
def test_an_incomplete_or_garbled_folder_is_not_a_checkpoint(copy_of_run: Path, name: str) -> None:
    (copy_of_run / name).write_text("{")
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        load_checkpoint(copy_of_run)
    (copy_of_run / name).unlink()
    with pytest.raises(
        CheckpointError, match=f"has no {name}. Expected a folder that `sda-features adapt` wrote"
    ):
        load_checkpoint(copy_of_run)


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("projection", [{"kind": "pooled", "dim": 24}, {"kind": "linear", "dim": 24}])
def test_quantisations_and_projections_round_trip(
    tmp_path: Path,
    catalogue: Path,
    tiny_models: dict[str, Path],
    quantization: str,
    projection: dict[str, Any],
) -> None:
    settings = adapt_settings(
        catalogue,
        tiny_models["qwen2_5_vl"],
        backbone={"quantization": quantization},
        projection=projection,
        train={"steps": 2, "micro_batch_size": 4, "gradient_checkpointing": True},
    )
    result = adapt(settings, tmp_path, progress=False)
    (encoded,) = vectors(catalogue, result.checkpoint)
    assert encoded.text.shape == (14, 24)


def test_nothing_to_train_is_an_error(tmp_path: Path, catalogue: Path, tiny_models: dict[str, Path]) -> None:
    settings = adapt_settings(catalogue, tiny_models["qwen2_5_vl"], adapter={"kind": "none"})
    with pytest.raises(SettingsError, match="Nothing to train.*materialize --model"):
        adapt(settings, tmp_path, progress=False)


def test_a_pooled_projection_cannot_enlarge(
    tmp_path: Path, catalogue: Path, tiny_models: dict[str, Path]
) -> None:
    settings = adapt_settings(catalogue, tiny_models["qwen2_5_vl"], projection={"kind": "pooled", "dim": 65})
    with pytest.raises(SettingsError, match="larger than the model's hidden size 64"):
        adapt(settings, tmp_path, progress=False)


def test_a_catalogue_without_pairs_cannot_train(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    path = tmp_path / "items.parquet"
    pq.write_table(
        pa.Table.from_pylist([{"item_id": "a", "title": "x"}, {"item_id": "b", "title": "y"}]), path
    )
    with pytest.raises(CatalogError, match="0 items with both a text and a picture"):
        adapt(adapt_settings(path, tiny_models["qwen2_5_vl"]), tmp_path / "run", progress=False)


@pytest.mark.parametrize("micro", [None, 2])
def test_a_dry_run_counts_what_a_run_trains_and_keeps(
    catalogue: Path, tiny_models: dict[str, Path], run: AdaptResult, micro: int | None
) -> None:
    def planned(**train: Any) -> Plan:
        return plan_adapt(
            adapt_settings(
                catalogue,
                tiny_models["qwen2_5_vl"],
                train={"batch_size": 6, "micro_batch_size": micro, **train},
            )
        )

    first = planned()
    assert first.trainable_parameters == run.trainable_parameters
    assert first.steps_per_epoch == pytest.approx(14 / 6)
    assert first.text_tokens > 10
    assert first.image_tokens > 4
    assert planned(gradient_checkpointing=True).activation_bytes < first.activation_bytes
    assert planned(batch_size=12).activation_bytes == pytest.approx(
        first.activation_bytes * (1 if micro else 2), rel=0.01
    )


def test_a_log_is_a_second_teacher_and_its_split_is_recorded(
    run: AdaptResult, tmp_path: Path, catalogue: Path, tiny_models: dict[str, Path]
) -> None:
    rows = [
        {"user_id": f"u{n}", "item_id": f"i{(5 * n + m) % 14}", "position": m}
        for n in range(9)
        for m in range(6)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    settings = adapt_settings(
        catalogue, tiny_models["qwen2_5_vl"], behaviour={"interactions": tmp_path / "log.parquet"}
    )
    taught = adapt(settings, tmp_path / "run", progress=False)
    recorded = json.loads((taught.checkpoint / "manifest.json").read_text())["data"]["behaviour"]
    assert recorded["split"]["split"] == "leave-one-out"
    assert recorded["pairs"] > 5
    assert len(recorded["training_sha256"]) == 64
    first, second = (load_file(r.checkpoint / "adapter.safetensors") for r in (run, taught))
    assert any(not np.array_equal(first[name], second[name]) for name in first)
