"""Kill a real `adapt` at random moments; the resumed run must end in the very same weights."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from sda_features.errors import CheckpointError, SettingsError
from sda_features.workflows import adapt
from tests.lvlm.test_adapt import adapt_settings, write_catalogue

STEPS = 24
COMMAND = Path(sys.executable).with_name("sda-features")


def arguments(catalogue: Path, model: Path, output: Path) -> list[str]:
    return [
        *(str(COMMAND), "adapt", str(catalogue), "--model", str(model), "-o", str(output), "--json"),
        *("--steps", str(STEPS), "--batch-size", "6", "--micro-batch-size", "4", "--save-every", "3"),
        *("--validate-every", "6", "--validation-share", "0.4", "--quantization", "none", "--device", "cpu"),
        *("--max-bad-rows", "0.5", "--learning-rate", "0.01", "--loss-learn-temperature"),
    ]


def logged_steps(output: Path) -> int:
    log = output / "training_log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def logged(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "training_log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_killed_three_times_ends_in_the_weights_of_an_undisturbed_one(
    tmp_path: Path, tiny_model: Path
) -> None:
    catalogue = write_catalogue(tmp_path / "items.parquet", 60)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(arguments(catalogue, tiny_model, whole), check=True, capture_output=True)
    command = arguments(catalogue, tiny_model, broken)

    moments = sorted(random.SystemRandom().sample(range(2, STEPS - 1), 3))
    resume: list[str] = []
    for moment in moments:
        with subprocess.Popen([*command, *resume], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
            while logged_steps(broken) < moment and run.poll() is None:
                time.sleep(0.01)
            assert run.poll() is None, run.stderr.read().decode() if run.stderr else ""
            run.send_signal(signal.SIGKILL)
        resume = ["--resume"]
        assert not (broken / "checkpoint").exists()
    done = subprocess.run([*command, "--resume"], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["steps"] == STEPS

    expected, found = (load_file(folder / "checkpoint" / "adapter.safetensors") for folder in (whole, broken))
    assert expected.keys() == found.keys()
    different = [name for name in expected if not np.array_equal(expected[name], found[name])]
    assert not different, f"killed after steps {moments}: {different}"
    logs = [[{**record, "items_per_second": None} for record in logged(folder)] for folder in (whole, broken)]
    assert logs[0] == logs[1]
    assert sorted(path.name for path in broken.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_an_unfinished_run_is_neither_overwritten_nor_resumed_with_other_settings(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue, more = (write_catalogue(tmp_path / f"{count}.parquet", count) for count in (14, 15))
    train = {"steps": 4, "batch_size": 6, "save_every": 2}
    settings = adapt_settings(catalogue, tiny_model, train=train)

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("sda_features.lvlm.finetune.save_checkpoint", interrupt)
        with pytest.raises(KeyboardInterrupt):
            adapt(settings, tmp_path / "run", progress=False)
    with pytest.raises(SettingsError, match="unfinished run. Go on with --resume"):
        adapt(settings, tmp_path / "run", progress=False)
    other = adapt_settings(catalogue, tiny_model, train={**train, "learning_rate": 0.5})
    changed = adapt_settings(more, tiny_model, train=train)
    for differing, what in ((other, "settings"), (changed, "data")):
        with pytest.raises(CheckpointError, match=f"cannot be resumed: its {what} differ"):
            adapt(differing, tmp_path / "run", progress=False, resume=True)
    assert adapt(settings, tmp_path / "run", progress=False, resume=True).steps == 4
    assert not (tmp_path / "run" / "states").exists()


BEST_AT: dict[str, Callable[[dict[str, float]], float]] = {
    "alignment": lambda measured: measured["recall@10"],
    "neighbours": lambda measured: measured["neighbours@10"],
    "both": lambda measured: (measured["recall@10"] * measured["neighbours@10"]) ** 0.5,
}


@pytest.mark.parametrize("validate_on", BEST_AT)
def test_early_stopping_keeps_the_best_weights(tmp_path: Path, tiny_model: Path, validate_on: str) -> None:
    settings = adapt_settings(
        write_catalogue(tmp_path / "items.parquet", 60),
        tiny_model,
        train={
            "steps": 40,
            "batch_size": 8,
            "validation_share": 0.5,
            "validate_every": 1,
            "patience": 3,
            "learning_rate": 1.0,  # wrecks the model at once
            "validate_on": validate_on,
        },
    )
    result = adapt(settings, tmp_path / "run", progress=False)
    scores = [BEST_AT[validate_on](record) for record in logged(tmp_path / "run")]
    assert result.steps < 40
    assert result.recall["step"] == scores.index(max(scores)) + 1
    assert BEST_AT[validate_on](result.recall) == pytest.approx(max(scores))
