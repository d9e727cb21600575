"""Two pods that write at once, one of them stopped past its lease: the quick form of tests/two_writers.py."""

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
