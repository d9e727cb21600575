"""`adapt` on states that are damaged, losses that are lost, folders that are taken: one message each."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sda_features.artifacts import lock_folder, sha256_files
from sda_features.cli.main import main
from sda_features.lvlm import finetune
from tests.hostile.damage import damage

pytestmark = pytest.mark.fault


OPTIONS = ["--quantization", "none", "--device", "cpu", "--max-bad-rows", 1, "--validation-share", 0]
OPTIONS += ["--steps", 4, "--batch-size", 6, "--save-every", 1]


@pytest.fixture(scope="module")
def adapt_into(catalogue, tiny_models):
    """Arguments of a run into a folder."""

    def arguments(output, *more):
        given = ["adapt", catalogue, "--model", tiny_models["qwen2_5_vl"], "-o", output, *OPTIONS, *more]
        return [str(argument) for argument in given]

    return arguments


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory, adapt_into):
    """A run folder as a kill after the second state leaves it."""
    output = tmp_path_factory.mktemp("run") / "run"

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        save, calls = finetune.save_state, iter(range(9))
        patch.setattr(finetune, "save_state", lambda *a: (save(*a), next(calls) and stop())[1])
        with pytest.raises(SystemExit) as ended:
            main(adapt_into(output))
    assert ended.value.code == 130
    assert len(list((output / "states").iterdir())) == 2
    return output


@pytest.fixture
def run(broken_off, tmp_path):
    return Path(shutil.copytree(broken_off, tmp_path / "run"))


def of_nan(path):
    tensors = load_file(path)
    floats = [name for name, value in tensors.items() if value.dtype.kind == "f"]
    save_file(tensors | {name: np.full_like(tensors[name], np.nan) for name in floats}, path)


def lacking(path):
    save_file({"x": load_file(path)["generators.cpu"]}, path)
    damage(path.with_name("state.json"), {"tensors_sha256": sha256_files([path])})


STATES = {
    "tensors of NaN": ("tensors.safetensors", of_nan),
    "tensors cut": ("tensors.safetensors", b"12345"),
    "tensors missing": ("tensors.safetensors", None),
    "tensors lacking, hash agrees": ("tensors.safetensors", lacking),
    "state cut": ("state.json", b'{"standing'),
    "state a list": ("state.json", b"[]"),
    "state missing": ("state.json", None),
    "state latin-1": ("state.json", b"\xe9"),
    "state empty": ("state.json", b"{}"),
}


@pytest.mark.parametrize("kind", STATES)
def test_a_damaged_state_is_one_error_that_says_what_to_do(run, adapt_into, fails, kind):
    file, how = STATES[kind]
    newest = max((run / "states").iterdir())
    damage(newest / file, how)
    found = fails(*adapt_into(run, "--resume"))
    assert f"{newest} is damaged. Delete that folder and run again with --resume" in found
    if kind == "tensors of NaN":  # what the message advises works
        shutil.rmtree(newest)
        main(adapt_into(run, "--resume", "--json"))
        assert (run / "checkpoint" / "manifest.json").exists()


def test_resuming_a_run_that_has_ended_does_nothing_and_says_so(run, adapt_into, fails, capsys, monkeypatch):
    command = adapt_into(run, "--resume")
    main([*command, "--json"])
    first = json.loads(capsys.readouterr().out)
    assert not first["finished_before"]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    monkeypatch.setattr(finetune, "_finetune", lambda *a: pytest.fail("trained again"))
    main(command)
    assert "the run has ended after 4 steps; nothing was done" in capsys.readouterr().out
    main([*command, "--json"])
    second = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert second["finished_before"]
    assert second["items_per_second"] is None
    for key in ("checkpoint", "steps", "loss", "pairs"):
        assert second[key] == first[key]
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert "with other settings: there is nothing to resume" in fails(*command, "--seed", 7)


def test_a_second_run_into_the_same_folder_is_refused(adapt_into, tmp_path, fails):
    output = tmp_path / "run"
    output.mkdir()
    with lock_folder(output) as held:
        assert held
        found = fails(*adapt_into(output))
    assert f"Another run is writing to {output}" in found


@pytest.mark.parametrize("rate", [1e12, float("nan"), float("inf"), 0, -1])
def test_a_learning_rate_out_of_range_is_a_usage_error(adapt_into, tmp_path, fails, rate):
    assert "--learning-rate" in fails(*adapt_into(tmp_path / "run", "--learning-rate", rate), status=2)


def test_a_loss_that_is_not_finite_stops_the_run_with_advice(adapt_into, tmp_path, fails, monkeypatch):
    step = finetune.warmup_cosine
    monkeypatch.setattr(finetune, "warmup_cosine", lambda *a: 1e40 * step(*a))
    found = fails(*adapt_into(tmp_path / "run"))
    assert "not finite" in found or "The loss is nan" in found
    assert "lower --learning-rate" in found
    assert not (tmp_path / "run" / "checkpoint").exists()
