"""Runs are made once: what counts as the same run, and what does not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from sda_features.config import (
    PRESETS,
    EvaluationSettings,
    LogSettings,
    RecommenderSettings,
    recommender_settings,
)
from sda_features.errors import SettingsError
from sda_features.recommenders.registry import OWN
from sda_features.workflows.features import load_features
from sda_features.workflows.train import Training, read_log, train_recommender, train_seeds

SETTINGS = RecommenderSettings(hidden_dim=8, epochs=1, validate_every=1, threads=1)
EVALUATION = EvaluationSettings(negatives=5)


@pytest.fixture(scope="module")
def training(shop: Path) -> Training:
    log = read_log(shop / "log.parquet", LogSettings())
    features = load_features(str(shop / "full.parquet"), log.item_ids)
    return Training(log, LogSettings(), features, "sasrec", SETTINGS, EVALUATION)


@pytest.fixture(scope="module")
def folder(training: Training, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert training.differs_from(folder) == ["not trained yet"]
    training.train(progress=False).save(folder)
    return folder


def test_a_manifest_says_what_a_run_was_made_of(training, folder, shop):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["model"], manifest["recommender"]) == ("sasrec", "SASRec")
    assert manifest["features"] == str(shop / "full.parquet")
    assert manifest["vectors_sha256"] == training.features.sha256
    assert manifest["log"] == LogSettings().model_dump()
    assert manifest["commit"] is None or len(manifest["commit"].removesuffix("-dirty")) == 40
    assert manifest["data"]["users_not_evaluated"] == 2, "users with one and with two interactions"
    assert {block["items"] for block in manifest["vectors"].values()} == {training.features.items - 2}


def test_a_finished_run_is_not_trained_again(training, folder):
    lines: list[str] = []
    before = (folder / "manifest.json").stat().st_mtime_ns
    run = training.run(folder, lines.append, place="[1/1] ")
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    assert run.manifest["metrics"]["users/all"] == 58
    assert len(lines) == 1
    assert lines[0].startswith("[1/1] sasrec, full, seed 0: ndcg@10/full/all 0.")
    assert lines[0].endswith("(finished before)")


def test_how_fast_a_run_was_does_not_count(training, folder):
    other = SETTINGS.model_copy(update={"threads": 2, "device": "cpu"})
    assert replace(training, settings=other).differs_from(folder) == []


def test_every_input_counts(training, folder, shop):
    log = training.interactions
    shorter = read_log(shop / "log.parquet", LogSettings(k_core=2))
    half, ids = load_features(str(shop / "half.parquet"), log.item_ids), load_features("id", log.item_ids)
    hashes = f"sha256: {log.data_hash[:12]} before, {shorter.data_hash[:12]} now"
    changed = SETTINGS.model_copy(update={"dropout": 0.1, "seed": 3})
    cases = {
        "settings": (changed, ["dropout: 0.5 before, 0.1 now", "seed: 0 before, 3 now"]),
        "evaluation": (EvaluationSettings(negatives=4), ["negatives: 5 before, 4 now"]),
        "model": ("vbpr", ["model: sasrec before, vbpr now"]),
        "interactions": (shorter, [hashes]),
    }
    for name, (value, expected) in cases.items():
        assert replace(training, **{name: value}).differs_from(folder) == expected, name
    differs = replace(training, features=half).differs_from(folder)
    assert [line.split(":")[0] for line in differs] == ["features", "vectors_sha256"]
    same_name = replace(half, name=training.features.name)
    assert len(replace(training, features=same_name).differs_from(folder)) == 1, "the file was rewritten"
    assert replace(training, features=ids).differs_from(folder)


def test_a_run_of_other_settings_is_trained_again(training, folder, tmp_path):
    training.train(progress=False).save(tmp_path / "run")
    lines: list[str] = []
    changed = replace(training, settings=SETTINGS.model_copy(update={"epochs": 2}))
    run = changed.run(tmp_path / "run", lines.append, progress=False)
    assert lines[0] == "sasrec, full, seed 0: training (epochs: 1 before, 2 now)"
    assert len(run.manifest["epochs"]) == 2
    assert changed.differs_from(tmp_path / "run") == []


def test_a_folder_that_is_no_run_is_never_replaced(training, folder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SettingsError, match="is not an earlier run: it holds notes.txt. Name a new"):
        training.run(tmp_path, print, progress=False)
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "seed-1").mkdir()
    assert training.run(tmp_path / "run", print).folder == tmp_path / "run", "nothing is replaced"
    with pytest.raises(SettingsError, match="is not an earlier run: it holds seed-1"):
        replace(training, model="vbpr").run(tmp_path / "run", print, progress=False)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "run" / "seed-1").is_dir()


def test_several_seeds_lie_side_by_side_and_one_lies_alone(shop, tmp_path):
    lines: list[str] = []
    train = partial(
        train_seeds,
        shop / "log.parquet",
        features=str(shop / "full.parquet"),
        settings={"sasrec": SETTINGS},
        evaluation=EVALUATION,
        log=LogSettings(),
        echo=lines.append,
        progress=False,
    )
    one, two = train(tmp_path / "one", seeds=[3]), train(tmp_path / "two", seeds=[3, 4])
    folders = [tmp_path / name for name in ("one", "two/seed-3", "two/seed-4")]
    assert [run.folder for run in one + two] == folders
    assert lines[0].startswith("full: 2 of 40 items have no vector")
    seeds = [json.loads((folder / "manifest.json").read_text()) for folder in folders]
    assert [manifest["settings"]["seed"] for manifest in seeds] == [3, 3, 4]
    assert seeds[0]["metrics"] == seeds[1]["metrics"] != seeds[2]["metrics"]


def test_a_k_core_and_a_temporal_split_go_through(shop):
    result = train_recommender(
        shop / "log.parquet",
        "id",
        SETTINGS,
        EvaluationSettings(negatives=5, split="temporal"),
        log=LogSettings(k_core=2),
        progress=False,
    )
    assert result.split.interactions.lengths.min() >= 2
    manifest = result.manifest()
    assert (manifest["evaluation"]["split"], manifest["log"]["k_core"]) == ("temporal", 2)
    users = manifest["data"]["users"]
    assert 0 < manifest["metrics"]["users/all"] == users - manifest["data"]["users_not_evaluated"] < users


def test_an_unknown_model_is_named(shop):
    with pytest.raises(SettingsError, match="No recommender 'gru'"):
        train_recommender(shop / "log.parquet", "id", SETTINGS, EVALUATION, model="gru", progress=False)


def test_presets_are_usable_and_options_win():
    for preset, models in PRESETS.items():
        assert set(models) == set(OWN)
        for model, values in models.items():
            settings = recommender_settings(model, preset, dropout=0.25).model_dump()
            assert settings == RecommenderSettings(**values | {"dropout": 0.25}).model_dump()
    assert recommender_settings("mine", "dense") == RecommenderSettings(), "a model that no preset knows"
    with pytest.raises(SettingsError, match="No preset 'huge'; there are sparse, dense"):
        recommender_settings("sasrec", "huge")
    with pytest.raises(SettingsError, match="validation_from 0.9 is not before test_from 0.9"):
        EvaluationSettings.parse(validation_from=0.9)
