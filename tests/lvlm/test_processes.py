"""Two processes on the CPU (gloo), started by `accelerate launch`, against one with the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.lvlm.sharded_step import CASES, LOSSES, QUANTIZATIONS, key, steps

ROOT = Path(__file__).parents[2]
Results = dict[str, Tensor]


@pytest.fixture(scope="module")
def one(tiny_model: Path) -> dict[str, Results]:
    return dict(steps(tiny_model))


@pytest.fixture(scope="module")
def two(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    target = tmp_path_factory.mktemp("two") / "found.safetensors"
    # On a CPU `accelerate launch` wants MPI; under --multi_gpu it starts torchrun, and gloo does the rest.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", "0", "-m", "tests.lvlm.sharded_step"]
    done = subprocess.run(
        [*launch, str(tiny_model), str(target)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return load_file(target)


@pytest.mark.slow
@pytest.mark.parametrize("case", [key(name, *case) for name in QUANTIZATIONS for case in CASES])
def test_two_processes_take_the_step_of_one(case: str, one: dict[str, Results], two: Results) -> None:
    expected = dict(one[case])
    found = {name: two[f"{case}|{name}"] for name in expected}
    assert (int(expected.pop("count")), int(found.pop("count"))) == (1, 2)
    for name in ("loss", "entropy", "spread"):
        torch.testing.assert_close(found.pop(name), expected.pop(name), rtol=1e-4, atol=1e-6)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        norm = gradient.norm()
        assert norm > 0, f"vacuous: {name} has no gradient"
        assert (found[name] - gradient).norm() / norm < 1e-3, name


@pytest.mark.slow
def test_losses_differ(one: dict[str, Results]) -> None:
    losses = {
        round(float(found["loss"]), 4)
        for case, found in one.items()
        if case.startswith("none") and case.endswith("8")
    }
    assert len(losses) == len(LOSSES)
