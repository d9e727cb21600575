"""`adapt` from catalogue to vectors, through real files and a real tiny model."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from sda_features.catalog.rows import Catalog, Item
from sda_features.config import AdaptSettings, PromptSettings
from sda_features.demo.model import build_tiny_model
from sda_features.errors import CatalogError, CheckpointError, SettingsError
from sda_features.lvlm.checkpoint import load_checkpoint, unadapted
from sda_features.lvlm.encode import EncodedItems, encode_items
from sda_features.lvlm.finetune import AdaptResult
from sda_features.lvlm.plan import Plan
from sda_features.workflows import adapt, plan_adapt
from tests.lvlm.conftest import picture, png
from tests.shop import catalog as catalog_settings

MakeSettings = Callable[..., AdaptSettings]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_catalogue(path: Path, count: int = 14) -> Path:
    rows: list[dict[str, Any]] = []
    for n in range(count):
        image = png(picture(n, (56 + 28 * (n % 3), 56)))
        rows.append({"item_id": f"i{n}", "title": f"item {'long ' * (n % 4)}{n}", "image": image})
    rows[3]["image"] = b"broken"
    rows[4]["title"] = None
    return write_rows(path, rows)


def adapt_settings(catalogue: Path, model: Path, **changes: dict[str, Any]) -> AdaptSettings:
    values: dict[str, dict[str, Any]] = {
        "catalog": {"path": catalogue, "max_bad_rows": 0.5},
        "backbone": {"model": str(model), "quantization": "nf4", "device": "cpu"},
        "train": {"steps": 4, "batch_size": 6, "learning_rate": 1e-2, "warmup_steps": 1},
    }
    for stage, change in changes.items():
        values[stage] = values.get(stage, {}) | change
    return AdaptSettings.parse(**values)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_catalogue(tmp_path_factory.mktemp("catalogue") / "items.parquet")


@pytest.fixture(scope="module")
def items(catalogue: Path) -> list[Item]:
    return list(Catalog(catalog_settings(catalogue)).items())


@pytest.fixture(scope="module")
def settings(catalogue: Path, tiny_model: Path) -> MakeSettings:
    """Settings of a run over the catalogue, by what differs."""
    return partial(adapt_settings, catalogue, tiny_model)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, settings: MakeSettings) -> AdaptResult:
    return adapt(settings(), tmp_path_factory.mktemp("run"), progress=False)


@pytest.fixture
def copy_of_run(run: AdaptResult, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run.checkpoint, tmp_path / "checkpoint"))


def weights(run: AdaptResult) -> dict[str, np.ndarray]:
    return load_file(run.checkpoint / "adapter.safetensors")


def vectors(items: list[Item], checkpoint: Path, **options: int) -> list[EncodedItems]:
    """Encode over unquantised weights: 4-bit kernels on the CPU depend on the batch in the fourth digit."""
    return list(encode_items(load_checkpoint(checkpoint, quantization="none"), items, **options))


def test_texts_that_the_model_reads_in_part_are_counted(
    tmp_path: Path, run: AdaptResult, settings: MakeSettings
) -> None:
    assert run.texts_cut == 0
    short = settings(prompts={"max_text_tokens": 8}, train={"steps": 1})
    cut = adapt(short, tmp_path / "run", progress=False)
    assert cut.texts_cut == cut.pairs + 1  # one item has a text alone
    again = adapt(short, tmp_path / "run", progress=False, resume=True)
    assert (again.finished_before, again.texts_cut) == (True, cut.texts_cut)


def test_run_folder_holds_log_report_and_a_complete_checkpoint(run: AdaptResult) -> None:
    folder = run.checkpoint.parent
    names = {path.name for path in folder.iterdir()}
    assert names == {"catalog_report.jsonl", "checkpoint", "training_log.jsonl"}
    assert {path.name for path in run.checkpoint.iterdir()} == {
        *("README.md", "manifest.json", "settings.json", "preprocessing.json"),
        *("adapter.safetensors", "rotation.safetensors"),
    }
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
    keys = weights(run).keys()
    assert {key.rsplit(".", 1)[1] for key in keys} == {"A", "B", "embedding", "weight", "bias"}
    assert len(keys) == 2 * 7 * 2 + 3


def test_the_same_seed_gives_the_same_weights_and_training_changes_them(
    run: AdaptResult, tmp_path: Path, settings: MakeSettings
) -> None:
    first, second = weights(run), weights(adapt(settings(), tmp_path, progress=False))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert all(np.abs(first[name]).max() > 0 for name in first)


def test_vectors_do_not_depend_on_batches_or_shards_and_missing_modalities_are_not_found(
    run: AdaptResult, items: list[Item]
) -> None:
    (whole,) = vectors(items, run.checkpoint, batch_size=16)
    parts = vectors(items, run.checkpoint, batch_size=3, shard_rows=5)
    assert [len(part.item_ids) for part in parts] == [5, 5, 4]
    assert whole.item_ids == [f"i{n}" for n in range(14)]
    np.testing.assert_allclose(np.concatenate([part.text for part in parts]), whole.text, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([part.image for part in parts]), whole.image, atol=1e-5)
    assert np.flatnonzero(~whole.image_found).tolist() == [3]
    assert np.flatnonzero(~whole.text_found).tolist() == [4]
    np.testing.assert_allclose(np.linalg.norm(whole.text[whole.text_found], axis=1), 1, atol=1e-5)
    assert not whole.text[4].any()


def test_a_checkpoint_changes_vectors_and_version(
    run: AdaptResult, items: list[Item], settings: MakeSettings
) -> None:
    plain, adapted = unadapted(settings().backbone, PromptSettings()), load_checkpoint(run.checkpoint)
    assert plain.version != adapted.version
    assert load_checkpoint(run.checkpoint).version == adapted.version
    assert load_checkpoint(run.checkpoint, quantization="none").version != adapted.version
    (before,), (after,) = (encode_items(loaded, items) for loaded in (plain, adapted))
    assert np.abs(before.text - after.text).max() > 1e-3


def test_a_smaller_dimension_is_a_version_of_its_own_and_keeps_neighbours(
    run: AdaptResult, items: list[Item]
) -> None:
    loaded = [load_checkpoint(run.checkpoint, dim) for dim in (None, 64, 8)]
    assert len({each.version for each in loaded}) == 3
    (before,), (turned,), (less,) = (encode_items(each, items) for each in loaded)
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


def test_another_base_model_is_refused(copy_of_run: Path, tmp_path: Path) -> None:
    build_tiny_model(tmp_path / "other", ["another vocabulary"], seed=5, hidden_size=64, layers=2)
    with pytest.raises(CheckpointError, match="adapts the base model .*Give the right one with --model"):
        load_checkpoint(copy_of_run, model=str(tmp_path / "other"))


def test_changed_preprocessing_is_refused(copy_of_run: Path) -> None:
    path = copy_of_run / "preprocessing.json"
    path.write_text(path.read_text().replace("assistant", "helper"))
    with pytest.raises(CheckpointError, match="tokenizer, chat template or image processor"):
        load_checkpoint(copy_of_run)


def test_damage_is_noticed(run: AdaptResult, copy_of_run: Path) -> None:
    tensors = weights(run)
    tensors["gates.bias"] += 1
    save_file(tensors, copy_of_run / "adapter.safetensors")
    with pytest.raises(CheckpointError, match="does not match the hash"):
        load_checkpoint(copy_of_run)


@pytest.mark.parametrize("name", ["settings.json", "manifest.json", "preprocessing.json"])
def test_an_incomplete_or_garbled_folder_is_not_a_checkpoint(copy_of_run: Path, name: str) -> None:
    (copy_of_run / name).write_text("{")
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        load_checkpoint(copy_of_run)
    (copy_of_run / name).unlink()
    wanted = "Expected a folder that `sda-features adapt` wrote"
    with pytest.raises(CheckpointError, match=f"has no {name}. {wanted}"):
        load_checkpoint(copy_of_run)


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("projection", [{"kind": "pooled", "dim": 24}, {"kind": "linear", "dim": 24}])
def test_quantisations_and_projections_round_trip(
    tmp_path: Path, items: list[Item], settings: MakeSettings, quantization: str, projection: dict[str, Any]
) -> None:
    chosen = settings(
        backbone={"quantization": quantization},
        projection=projection,
        train={"steps": 2, "micro_batch_size": 4, "gradient_checkpointing": True},
    )
    (encoded,) = vectors(items, adapt(chosen, tmp_path, progress=False).checkpoint)
    assert encoded.text.shape == (14, 24)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": {"kind": "none"}}, "Nothing to train.*materialize --model"),
        ({"projection": {"kind": "pooled", "dim": 65}}, "larger than the model's hidden size 64"),
    ],
    ids=["nothing to train", "a pooled projection that enlarges"],
)
def test_settings_that_cannot_train_are_refused(
    tmp_path: Path, settings: MakeSettings, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        adapt(settings(**changes), tmp_path, progress=False)


def test_a_catalogue_without_pairs_cannot_train(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"item_id": "a", "title": "x"}, {"item_id": "b", "title": "y"}]
    path = write_rows(tmp_path / "items.parquet", rows)
    with pytest.raises(CatalogError, match="0 items with both a text and a picture"):
        adapt(adapt_settings(path, tiny_model), tmp_path / "run", progress=False)


@pytest.mark.parametrize("micro", [None, 2])
def test_a_dry_run_counts_what_a_run_trains_and_keeps(
    run: AdaptResult, settings: MakeSettings, micro: int | None
) -> None:
    def planned(**train: int) -> Plan:
        return plan_adapt(settings(train={"batch_size": 6, "micro_batch_size": micro, **train}))

    first = planned()
    assert first.trainable_parameters == run.trainable_parameters
    assert first.steps_per_epoch == pytest.approx(14 / 6)
    assert first.text_tokens > 10
    assert first.image_tokens > 4
    assert planned(gradient_checkpointing=True).activation_bytes < first.activation_bytes
    twice = first.activation_bytes * (1 if micro else 2)
    assert planned(batch_size=12).activation_bytes == pytest.approx(twice, rel=0.01)


def test_a_log_is_a_second_teacher_and_its_split_is_recorded(
    run: AdaptResult, tmp_path: Path, settings: MakeSettings
) -> None:
    rows = [
        {"user_id": f"u{n}", "item_id": f"i{(5 * n + m) % 14}", "position": m}
        for n in range(9)
        for m in range(6)
    ]
    log = write_rows(tmp_path / "log.parquet", rows)
    taught = adapt(settings(behaviour={"interactions": log}), tmp_path / "run", progress=False)
    recorded = json.loads((taught.checkpoint / "manifest.json").read_text())["data"]["behaviour"]
    assert recorded["split"]["split"] == "leave-one-out"
    assert recorded["pairs"] > 5
    assert len(recorded["training_sha256"]) == 64
    first, second = weights(run), weights(taught)
    assert any(not np.array_equal(first[name], second[name]) for name in first)
