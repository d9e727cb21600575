import signal
import subprocess
import sys

import pytest

from sda_features.artifacts import atomic_file, atomic_folder, sha256_files, sha256_json, write_json


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail():
        with atomic_file(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "run"
    for name in ("first", "second"):
        with atomic_folder(target) as temporary:
            (temporary / name).write_text(name)
    assert [path.name for path in target.iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (target / "second").stat().st_mode & 0o077 == target.stat().st_mode & 0o066


def test_a_killed_writer_never_shows_half_a_file(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, {"state": "old"})
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom sda_features.artifacts import atomic_file\n"
        "with atomic_file(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('{\"state\": ')\n    print('half', flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "half\n"
        writer.send_signal(signal.SIGKILL)
    assert '"old"' in target.read_text()


def test_hashes_depend_on_content_alone(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("x")
    second.write_text("x")
    assert sha256_files([first]) == sha256_files([second])
    second.write_text("y")
    assert sha256_files([first]) != sha256_files([second])
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1})
