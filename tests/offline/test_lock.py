"""The writer's lock: one process at a time, and none after a death."""

import subprocess
import sys

import pytest

from sda_features.errors import FeatureStoreError
from sda_features.offline.lock import writing
from sda_features.offline.parts import part_paths

HOLD = """
import sys
from pathlib import Path
from sda_features.offline.lock import writing
with writing(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_kept_out_until_it_dies(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "slot")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(FeatureStoreError, match=rf"writing to .*slot \(process {holder.pid}\)"),
            writing(tmp_path / "slot"),
        ):
            pass
        holder.kill()
        holder.wait()
        with writing(tmp_path / "slot"):
            assert part_paths(tmp_path / "slot") == []


def test_a_block_inside_a_block_is_kept_out_and_an_error_frees(tmp_path):
    with (
        writing(tmp_path),
        pytest.raises(FeatureStoreError, match="Another run is writing"),
        writing(tmp_path),
    ):
        pass
    with pytest.raises(ZeroDivisionError), writing(tmp_path):
        _ = 1 / 0
    with writing(tmp_path):
        pass
