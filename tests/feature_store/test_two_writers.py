"""Two pods that write at once, and servers that fail: quick forms of two_writers.py and failover.py."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_readers_see_no_mixture_and_no_outage():
    command = [sys.executable, "-m", "tests.two_writers", "4", "1"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert seen["lost or mixed"] == seen["wrong numbers"] == seen["stored wrong"] == 0
    assert not [name for name in seen if "failed" in name or "gave up" in name]
    assert seen["reads"] > 100
    assert seen["versions seen"] > 2


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["sentinel-write", "cluster-slots-move"])
def test_readers_see_no_mixture_while_servers_change(scenario):
    command = [sys.executable, "-m", "tests.failover", "1", "1", scenario]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (seen,) = json.loads(run.stdout.splitlines()[-1]).values()
    assert seen["lost or mixed"] == seen["wrong numbers"] == seen["stored wrong"] == 0
    assert seen["run after it done"] == 1
    assert seen["reads"] > 100
    failed = sum(count for name, count in seen.items() if name.startswith("failed"))
    assert (failed > 0) == (scenario == "sentinel-write"), "the master was down; slots that move are followed"
