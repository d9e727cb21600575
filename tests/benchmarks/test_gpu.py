"""benchmarks/gpu.py at toy size, on a machine that has nothing but its list of wheels: no Feast, no Redis."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.installed import ROOT, link, with_dependencies

pytestmark = pytest.mark.timeout(900)  # of a loaded machine
LISTED = [
    line
    for line in (ROOT / "benchmarks" / "gpu_requirements.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    site = tmp_path_factory.mktemp("machine") / "site"
    site.mkdir()
    link(site, *LISTED, *with_dependencies("torch"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    python = [sys.executable, "-S"]  # without this environment's own packages
    absent = subprocess.run(
        [*python, "-c", "import feast"], env=environment, capture_output=True, check=False
    )
    assert absent.returncode, "vacuous: Feast is there"
    done = subprocess.run(
        [*python, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--tiny"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_every_part_runs(result: dict[str, Any]) -> None:
    assert result["failed"] == []
    assert 0.2 < result["ratio"] < 5
    assert result["large_batch"]["items"] == 16
    assert {"texts", "pictures", "sasrec", "bert4rec", "pictures_a_core"} <= result.keys()


@pytest.mark.slow
def test_a_killed_run_and_an_export_end_in_the_same_numbers(result: dict[str, Any]) -> None:
    assert result["resume_killed"]
    assert result["resume_difference"] == 0
    assert result["export_distance"] < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_plan_is_within_15_percent_of_what_tensors_take(
    result: dict[str, Any], quantization: str
) -> None:
    step = result[f"step_{quantization}"]
    assert step["plan"] / step["peak"] == pytest.approx(1, abs=0.15)
