"""`materialize` killed at random moments: what it leaves, and what the next run makes of it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

KILLS = 6


@pytest.mark.slow
def test_a_run_that_was_killed_is_completed_without_encoding_a_shard_twice(tmp_path):
    command = [sys.executable, "-m", "tests.kill_materialize", tmp_path, "--kills", str(KILLS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    first, second = result["first.parquet"], result["second.parquet"]
    assert first["differences"] == second["differences"] == []
    assert first["kills"] == second["kills"] == KILLS // 2
    parts, rows, items = first["written"]
    assert rows == items == sum(first["calm"][:2]), "a shard was encoded twice, or not at all"
    assert sum(first["last"][:2]) == items
    assert first["last"][1] > 0, "vacuous: no shard was finished before a kill"
    assert first["last"][0] > 0, "vacuous: nothing was left to do after the last kill"
    assert parts > 1
    assert second["written"][2] == sum(second["calm"][:2]) < items, "what is gone from the catalogue stayed"
