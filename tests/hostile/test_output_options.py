"""Every option of every command that names what is written, with places that are taken or cannot be."""

import os
from pathlib import Path

import click
import pytest

from sda_features.cli.main import VERBS, cli
from sda_features.cli.ranges import OutputFile, OutputFolder

pytestmark = pytest.mark.fault

# Paths that are read, or a repo, whose files `init` adds to one by one.
READ = {"repo", "interactions", "image_root", "checkpoint", "checkpoints", "vectors", "thresholds"}
READ |= {"run", "run_a", "run_b", "recommenders", "config", "kafka_config"}
# What each command that writes a folder needs beside -o; of these inputs only the catalogue of adapt exists.
FOLDERS = {
    "demo": [],
    "adapt": ["items.csv", "--model", "none"],
    "index": ["none.parquet"],
    "export": ["none"],
    "diagnose": ["none", "--catalog", "none.parquet"],
    "train": ["none.parquet"],
    "table1": ["none.parquet"],
    "table2": ["none.parquet", "--features", "id"],
    "modality": ["none.parquet"],
}


OUTPUTS = [
    (verb, option)
    for verb in VERBS
    for option in cli.get_command(None, verb).params
    if isinstance(option.type, click.Path) and option.name not in READ
]


def test_the_walk_meets_every_command_that_writes():
    assert all(isinstance(option.type, OutputFile | OutputFolder) for _, option in OUTPUTS)
    assert {verb for verb, option in OUTPUTS if isinstance(option.type, OutputFolder)} == set(FOLDERS)
    files = {f"{verb} {option.name}" for verb, option in OUTPUTS if isinstance(option.type, OutputFile)}
    assert {"materialize report", "report output", "gate junit", "evaluate-vectors output"} <= files


@pytest.mark.parametrize(("verb", "option"), OUTPUTS, ids=lambda value: getattr(value, "name", value))
def test_a_place_that_cannot_be_written_is_a_usage_error(tmp_path, verb, option):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    wrong = "folder" if isinstance(option.type, OutputFile) else "file"
    context = click.Context(click.Command(verb))
    for place in ("/dev/null", "loop", "pipe", "file/below", "loop/below", "a\0b", wrong):
        with pytest.raises(click.UsageError):
            option.type.convert(str(tmp_path / place), option, context)
    good = option.type.convert(str(tmp_path / "new"), option, context)
    assert good == tmp_path / "new"
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("inside", ["thesis.tex", "manifest.json", "runs.txt", "seed-0"])
@pytest.mark.parametrize("verb", FOLDERS)
def test_somebody_elses_folder_is_refused_before_any_work(tmp_path, monkeypatch, fails, verb, inside):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "items.csv").write_text("item_id,title,image\n1,red,\n")
    target = tmp_path / "target"
    target.mkdir()
    for name in (inside, "index.html"):
        (target / name).write_text("years of work")
    said = fails(verb, *FOLDERS[verb], "-o", "target")
    assert "target" in said
    assert {path.name: path.read_text() for path in target.iterdir()} == dict.fromkeys(
        (inside, "index.html"), "years of work"
    )


@pytest.mark.parametrize("seeds", ["0", "0,1"])
def test_the_runs_of_several_seeds_stay_apart_from_other_things(tmp_path, monkeypatch, fails, seeds):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "seed-0").mkdir(parents=True)
    (tmp_path / "runs" / "seed-x").mkdir()
    assert "seed-x" in fails("train", "none.parquet", "--seeds", seeds, "-o", "runs")


@pytest.mark.parametrize("device", ["cuda:99", "xpu:99", "mps"])
@pytest.mark.parametrize("verb", ["train", "adapt", "diagnose"])
def test_a_device_that_is_not_there_is_one_message(tmp_path, catalogue, model, fails, verb, device):
    (tmp_path / "log.csv").write_text(
        "user_id,item_id,timestamp\n" + "".join(f"u,i{n},{n}\n" for n in range(5))
    )
    base = ["--model", model, "--quantization", "none"]
    arguments = {
        "train": [tmp_path / "log.csv"],
        "adapt": [catalogue, *base, "-o", tmp_path / "out", "--max-bad-rows", "1"],
        "diagnose": ["--catalog", catalogue, "--adapter", "moda", *base, "--max-bad-rows", "1"],
    }
    said = fails(verb, *arguments[verb], "--device", device)
    assert f"no device {device} here" in said
