"""table1, table2, modality, compare and evaluate, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from sda_features.cli.main import cli
from sda_features.errors import SettingsError
from sda_features.evaluation.metrics import hit_at_k, ndcg_at_k
from sda_features.evaluation.runs import Run, read_run
from sda_features.evaluation.significance import paired_t_test
from sda_features.feature_store.repo import open_feature_set
from sda_features.recommenders import training
from tests.feast_repo import Rows, make_repo
from tests.workflows.conftest import QUICK

__all__ = ["make_repo"]  # a fixture


def invoke(*arguments: str | Path, fails: bool = False) -> Result:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if fails:
        assert isinstance(done.exception, SettingsError), done.output
    else:
        assert done.exit_code == 0, (done.output, done.exception)
    return done


def as_json(*arguments: str | Path) -> Any:
    """What a command prints with --json."""
    return json.loads(invoke(*arguments, "--json").stdout)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def table1_arguments(shop: Path, output: Path) -> list[str]:
    features = f"id,{shop}/half.parquet,{shop}/full.parquet"
    options = ["--models", "sasrec,vbpr", "--features", features, "--seeds", "0,1", *QUICK]
    return ["table1", str(shop / "log.parquet"), "-o", str(output), *options]


def table1(shop: Path, output: Path) -> Result:
    return invoke(*table1_arguments(shop, output))


@pytest.fixture(scope="module")
def finished(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    output = tmp_path_factory.mktemp("output")
    return output, table1(shop, output)


CELLS = [(model, label) for model in ("sasrec", "vbpr") for label in ("id", "half", "full")]


def test_every_cell_is_a_run_and_every_score_is_in_the_manifest(finished):
    output, done = finished
    manifest = read_json(output / "table1.json")
    runs = {(run["model"], run["label"], run["settings"]["seed"]): run for run in manifest["runs"]}
    assert list(runs) == [(*cell, seed) for cell in CELLS for seed in (0, 1)]
    for (model, label, seed), entry in runs.items():
        run = read_run(output / entry["folder"])
        assert run.folder == output / "runs" / model / label / f"seed-{seed}"
        assert run.manifest["metrics"] == entry["metrics"]
        assert run.manifest["data"] == manifest["data"]
    assert (manifest["seeds"], manifest["items_without_vector"]) == ([0, 1], {"id": 0, "half": 2, "full": 2})
    assert manifest["evaluation"]["negatives"] == 5
    assert "[12/12] vbpr, full, seed 1: ndcg@10/full/all" in done.stderr
    assert "half: 2 of 40 items have no vector" in done.stderr


def test_a_cell_is_the_mean_over_seeds_with_its_marks(finished):
    output, _ = finished
    manifest = read_json(output / "table1.json")
    titles = [table["title"].split(",")[0] for table in manifest["tables"]]
    assert titles == ["ranking full", "ranking sampled-5"]
    stars = 0
    for table, protocol in zip(manifest["tables"], ("full", "sampled-5"), strict=True):
        assert [(row["model"], row["features"]) for row in table["rows"]] == CELLS
        for model in ("sasrec", "vbpr"):
            runs = runs_of(output, model)
            rows = {row["features"]: row["scores"] for row in table["rows"] if row["model"] == model}
            for column, metric, group in (
                ("overall H@10", hit_at_k, "all"),
                ("overall N@10", ndcg_at_k, "all"),
                ("tail N@10", ndcg_at_k, "tail"),
                ("lowest quintile H@10", hit_at_k, "lowest-quintile"),
            ):
                scores = {label: row[column] for label, row in rows.items()}
                values = {  # [seeds, users]
                    label: np.array([metric(run.ranks[protocol], 10)[run.groups[group]] for run in of_label])
                    for label, of_label in runs.items()
                }
                seeds = {label: of_label.mean(axis=1) for label, of_label in values.items()}
                users = {label: of_label.mean(axis=0) for label, of_label in values.items()}
                for label in values:
                    assert scores[label]["value"] == pytest.approx(np.mean(seeds[label]))
                    assert scores[label]["spread"] == pytest.approx(np.std(seeds[label], ddof=1))
                order = sorted(users, key=lambda label: -users[label].mean())
                if len({round(of_label.mean(), 12) for of_label in users.values()}) < 3:
                    continue  # ties share a place
                assert [scores[label]["place"] for label in order] == [1, 2, None]
                p_value = paired_t_test(users[order[0]], users[order[1]])[1]
                assert scores[order[0]]["p_value"] == pytest.approx(p_value)
                significant = p_value < 0.05 and min(seeds[order[0]]) > max(seeds[order[1]])
                assert [scores[label]["significant"] for label in order] == [significant, False, False]
                stars += 1
    assert stars > 4, "vacuous"


def runs_of(output: Path, model: str) -> dict[str, list[Run]]:
    """Label of the features -> the runs of both seeds."""
    folder = output / "runs" / model
    return {name: [read_run(folder / name / f"seed-{n}") for n in (0, 1)] for name in ("id", "half", "full")}


def test_the_last_features_are_compared_with_the_others(finished):
    output, done = finished
    rows = read_json(output / "table1.json")["differences"]
    assert {(row["model"], row["features"], row["against"]) for row in rows} == {
        (model, "full", other) for model in ("sasrec", "vbpr") for other in ("id", "half")
    }
    wanted = ("vbpr", "id", "ndcg@10/full/all")
    (row,) = (row for row in rows if (row["model"], row["against"], row["metric"]) == wanted)
    runs = runs_of(output, "vbpr")
    ours, theirs = (
        np.mean([ndcg_at_k(run.ranks["full"], 10) for run in runs[label]], axis=0) for label in ("full", "id")
    )
    assert row["difference"] == pytest.approx((ours - theirs).mean())
    assert row["p_value"] == pytest.approx(paired_t_test(ours, theirs)[1])
    assert row["low"] <= row["difference"] <= row["high"]
    assert "95% interval" in done.stdout
    assert (output / "table1.md").read_text().count("| vbpr") > 12


def test_what_is_printed_is_what_is_written(finished):
    output, done = finished
    markdown = (output / "table1.md").read_text()
    assert "<u>" in markdown
    assert "**0." in markdown
    for line in markdown.splitlines()[:8]:
        assert line in done.stdout
    assert (output / "table1.tex").read_text().count(r"\begin{tabular}") == 2


def test_a_stopped_command_goes_on_where_it_was(shop, finished, tmp_path, monkeypatch):
    """Killed in its fourth training; the second start trains the other nine, and the table is the same."""
    real, count = training.train, 0

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(training, "train", interrupted)
    output = tmp_path / "again"
    done = CliRunner().invoke(cli, table1_arguments(shop, output))
    assert done.exit_code == 1
    assert not (output / "table1.json").exists()
    assert len(list(output.glob("runs/*/*/*/manifest.json"))) == 3
    again = table1(shop, output)
    assert again.stderr.count("(finished before)") == 3
    assert count == 13
    tables = [read_json(folder / "table1.json")["tables"] for folder in (output, finished[0])]
    assert tables[0] == tables[1]
    assert table1(shop, output).stderr.count("(finished before)") == 12
    assert count == 13


def test_a_preset_gives_what_no_option_gives(shop, finished, tmp_path):
    runs = read_json(finished[0] / "table1.json")["runs"]
    assert {run["settings"]["hidden_dim"] for run in runs} == {8}
    assert {run["settings"]["dropout"] for run in runs if run["model"] == "sasrec"} == {0.5}
    train = ("train", shop / "log.parquet", "--preset", "dense", *QUICK, "--max-length", "9")
    settings = as_json(*train)["settings"]
    assert (settings["dropout"], settings["max_length"], settings["epochs"]) == (0.2, 9, 1)


def test_table2_shows_the_change_against_the_full_model(shop, tmp_path):
    features = f"{shop}/full.parquet,{shop}/half.parquet,id"
    options = ("-o", tmp_path, "--features", features, "--seeds", "0", *QUICK)
    done = invoke("table2", shop / "log.parquet", *options)
    manifest = read_json(tmp_path / "table2.json")
    rows = {row["features"]: row["scores"] for row in manifest["tables"][0]["rows"]}
    assert list(rows) == ["full", "half", "id"]
    for label, scores in rows.items():
        names = ("overall H@10", "overall N@10")
        changes = [scores[name]["value"] / rows["full"][name]["value"] - 1 for name in names]
        assert scores["overall Δ"]["value"] == pytest.approx(np.mean(changes)), label
    assert rows["full"]["overall Δ"]["value"] == 0
    assert "overall Δ" in done.stdout
    assert "+0.00%" in done.stdout
    compared = {(row["features"], row["against"]) for row in manifest["differences"]}
    assert compared == {("full", "half"), ("full", "id")}


def test_runs_of_one_table_compare_and_other_protocols_are_refused(shop, finished, tmp_path):
    runs = finished[0] / "runs" / "vbpr"
    content = as_json("compare", runs / "full", runs / "id")
    expected = read_json(finished[0] / "table1.json")["differences"]
    wanted = [row for row in expected if (row["model"], row["against"]) == ("vbpr", "id")]
    for row, of_table in zip(content["differences"], wanted, strict=True):
        assert row == {key: of_table[key] for key in row}
    shown = invoke("compare", runs / "full", runs / "id").stdout
    assert "| hit@10/full/all" in shown
    assert "One seed a side" not in shown
    assert "One seed a side" in invoke("compare", runs / "full" / "seed-0", runs / "id" / "seed-0").stdout
    other = tmp_path / "other"
    invoke("train", shop / "log.parquet", *QUICK, "--eval-negatives", "6", "-o", other)
    refused = invoke("compare", other, runs / "id" / "seed-0", fails=True)
    assert "cannot be compared: negatives: 6 and 5" in str(refused.exception)


def test_a_saved_run_is_evaluated_again(shop, finished):
    run = finished[0] / "runs" / "vbpr" / "full" / "seed-0"
    stored = as_json("evaluate", run)
    assert stored["metrics"] == read_json(run / "manifest.json")["metrics"]
    log = ["--interactions", shop / "log.parquet"]
    same = as_json("evaluate", run, "--negatives", "5", *log)
    assert same == stored
    other = as_json("evaluate", run, "--negatives", "7", "--cutoff", "3", *log)
    assert {name.split("/")[0] for name in other["metrics"]} == {"users", "hit@3", "ndcg@3"}
    assert "hit@3/sampled-7/all" in other["metrics"]
    missing = invoke("evaluate", run, "--negatives", "7", fails=True)
    assert "name the log with --interactions" in str(missing.exception)
    assert "| sampled-5 " in invoke("evaluate", run).stdout


def test_several_seeds_of_train(shop, tmp_path):
    train = ("train", shop / "log.parquet", "--seeds", "0,1", *QUICK)
    done = invoke(*train, "--model", "vbpr", "-o", tmp_path / "run")
    assert "id, seed 1" in done.stdout
    assert f"run  {tmp_path / 'run' / 'seed-1'}" in done.stdout
    content = as_json(*train)
    assert [manifest["settings"]["seed"] for manifest in content["runs"]] == [0, 1]


def test_modality_trains_on_text_image_and_both(shop, make_repo, tmp_path):
    repo = make_repo(server=None)
    ids = [f"i{item:02}" for item in range(30)]  # ten items of the log are unknown to Feast
    Rows.random(ids).write(open_feature_set(repo, "sda").folder)
    options = ["--repo", repo, "--model", "sasrec", "--seeds", "0", *QUICK]
    done = invoke("modality", shop / "log.parquet", "-o", tmp_path / "o", *options)
    manifest = read_json(tmp_path / "o" / "modality.json")
    labels = ["id", "sda-text", "sda-image", "sda"]
    assert [row["features"] for row in manifest["tables"][0]["rows"]] == labels
    vectors = {run["label"]: list(run["vectors"]) for run in manifest["runs"]}
    assert vectors == {"id": [], "sda-text": ["text"], "sda-image": ["image"], "sda": ["text", "image"]}
    assert {run["vectors_version"] for run in manifest["runs"]} == {None, "v1"}
    assert manifest["items_without_vector"]["sda"] == 12, "ten, and two that lack both"
    assert "sda: 12 of 40 items have no vector" in done.stderr
    assert list(dict.fromkeys(row["against"] for row in manifest["differences"])) == labels[:3]


def test_unusable_grids_are_named(shop, tmp_path):
    (tmp_path / "full.parquet").write_bytes((shop / "full.parquet").read_bytes())
    twice = f"{shop}/full.parquet,{tmp_path}/full.parquet"
    options = ("-o", tmp_path / "o", "--features", twice, "--models", "vbpr", *QUICK)
    done = invoke("table1", shop / "log.parquet", *options, fails=True)
    assert "Two feature sets are called 'full'" in str(done.exception)
    for option, value, message in (("--seeds", "a", "whole numbers"), ("--models", ",", "at least one name")):
        wrong = CliRunner().invoke(cli, ["table1", "log.parquet", "-o", "o", option, value])
        assert wrong.exit_code == 2
        assert message in wrong.output
