"""A disk that is really full under the commands that write: one message, nothing lost, and the next run completes."""

import shutil
import subprocess

import pytest

from sda_features.demo.catalogue import make_catalogue


def can_mount():
    """Whether this user may mount a tmpfs of his own."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="no mount namespaces for users here")
def test_a_full_disk_is_one_message_and_the_next_run_completes(
    tmp_path, checkpoint, tiny_models, redis_server, script
):
    (tmp_path / "disk").mkdir()
    make_catalogue(30).write(tmp_path / "items.parquet")
    given = [
        tmp_path / "disk",
        checkpoint,
        tmp_path / "items.parquet",
        tiny_models["qwen2_5_vl"],
        *redis_server,
    ]
    found = script("tests.hostile.full_disk", *given, prefix=["unshare", "-rm"])
    assert found.keys() == {"train", "export", "materialize", "adapt"}
    for command, result in found.items():
        assert result["status"] == 1, (command, result)
        assert "No space left" in result["said"], (command, result)
        assert "Free some space" in result["said"], (command, result)
        assert "Traceback" not in result["said"], (command, result)
        assert result["said"].count("error: ") == 1, (command, result)
        assert result["whole"], (command, result)
        assert result["next"][0] == 0, (command, result)
