"""Benchmarks whose rivals are written over our own modules end with their line of JSON; each compares results first."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.installed import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gradient_cache", "recommender_epoch"])
def test_a_benchmark_ends_with_its_ratio(name):
    command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", "--quick"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["name"] == name
    assert found["ratio"] > 0
