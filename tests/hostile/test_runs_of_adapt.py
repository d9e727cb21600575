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

pytestmark = pytest.mark.fault


def arguments(catalogue, model, output, *more):
    given = [
        "adapt",
        catalogue,
        "--model",
        model,
        "-o",
        output,
        "--max-bad-rows",
        1,
        "--quantization",
        "none",
    ]
    given += ["--device", "cpu", "--steps", 4, "--batch-size", 6, "--save-every", 1, "--validation-share", 0]
    return [str(argument) for argument in [*given, *more]]


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory, catalogue, tiny_models):
    """A run folder as a kill after the second state leaves it."""
    output = tmp_path_factory.mktemp("run") / "run"

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        save, calls = finetune.save_state, iter(range(9))
        patch.setattr(finetune, "save_state", lambda *a: (save(*a), next(calls) and stop())[1])
        with pytest.raises(SystemExit) as ended:
            main(arguments(catalogue, tiny_models["qwen2_5_vl"], output))
    assert ended.value.code == 130
    assert len(list((output / "states").iterdir())) == 2
    return output


def newest(run):
    return max((run / "states").iterdir())


def nan_state(run):
    tensors = load_file(newest(run) / "tensors.safetensors")
    floats = [name for name, value in tensors.items() if value.dtype.kind == "f"]
    lost = {name: np.full_like(tensors[name], np.nan) for name in floats}
    save_file(tensors | lost, newest(run) / "tensors.safetensors")


def lacking(run):
    path = newest(run) / "tensors.safetensors"
    save_file({"x": load_file(path)["generators.cpu"]}, path)
    state = json.loads((newest(run) / "state.json").read_text())
    state["tensors_sha256"] = sha256_files([path])
    (newest(run) / "state.json").write_text(json.dumps(state))


STATES = {
    "tensors of NaN": nan_state,
    "tensors cut": lambda run: (newest(run) / "tensors.safetensors").write_bytes(b"12345"),
    "tensors missing": lambda run: (newest(run) / "tensors.safetensors").unlink(),
    "tensors lacking, hash agrees": lacking,
    "state cut": lambda run: (newest(run) / "state.json").write_text('{"standing'),
    "state a list": lambda run: (newest(run) / "state.json").write_text("[]"),
    "state missing": lambda run: (newest(run) / "state.json").unlink(),
    "state latin-1": lambda run: (newest(run) / "state.json").write_bytes(b"\xe9"),
    "state empty": lambda run: (newest(run) / "state.json").write_text("{}"),
}


@pytest.mark.parametrize("kind", STATES)
def test_a_damaged_state_is_one_error_that_says_what_to_do(
    broken_off, catalogue, tiny_models, tmp_path,
    fails, kind,
):  # fmt: skip
    run = Path(shutil.copytree(broken_off, tmp_path / "run"))
    STATES[kind](run)
    found = fails(*arguments(catalogue, tiny_models["qwen2_5_vl"], run, "--resume"))
    assert f"{newest(run)} is damaged. Delete that folder and run again with --resume" in found
    if kind == "tensors of NaN":  # what the message advises works
        shutil.rmtree(newest(run))
        main(arguments(catalogue, tiny_models["qwen2_5_vl"], run, "--resume", "--json"))
        assert (run / "checkpoint" / "manifest.json").exists()


def test_resuming_a_run_that_has_ended_does_nothing_and_says_so(
    broken_off, catalogue, tiny_models, tmp_path, fails,
    capsys, monkeypatch,
):  # fmt: skip
    run = Path(shutil.copytree(broken_off, tmp_path / "run"))
    command = arguments(catalogue, tiny_models["qwen2_5_vl"], run, "--resume")
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
    assert {key: second[key] for key in ("checkpoint", "steps", "loss", "pairs")} == {
        key: first[key] for key in ("checkpoint", "steps", "loss", "pairs")
    }
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert "with other settings: there is nothing to resume" in fails(*command, "--seed", 7)


def test_a_second_run_into_the_same_folder_is_refused(catalogue, tiny_models, tmp_path, fails):
    output = tmp_path / "run"
    output.mkdir()
    with lock_folder(output) as held:
        assert held
        found = fails(*arguments(catalogue, tiny_models["qwen2_5_vl"], output))
    assert f"Another run is writing to {output}" in found


@pytest.mark.parametrize("rate", [1e12, float("nan"), float("inf"), 0, -1])
def test_a_learning_rate_out_of_range_is_a_usage_error(catalogue, tmp_path, fails, rate):
    assert "--learning-rate" in fails(
        *arguments(catalogue, tmp_path, tmp_path / "run", "--learning-rate", rate), status=2
    )


def test_a_loss_that_is_not_finite_stops_the_run_with_advice(
    catalogue, tiny_models, tmp_path, fails,
    monkeypatch,
):  # fmt: skip
    step = finetune.warmup_cosine
    monkeypatch.setattr(finetune, "warmup_cosine", lambda *a: 1e40 * step(*a))
    found = fails(*arguments(catalogue, tiny_models["qwen2_5_vl"], tmp_path / "run"))
    assert "not finite" in found or "The loss is nan" in found
    assert "lower --learning-rate" in found
    assert not (tmp_path / "run" / "checkpoint").exists()
