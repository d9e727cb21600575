"""Outputs that are taken, kills while a folder is replaced, and what the boundary of the command line says."""

import asyncio
import errno
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples.ranking_service.settings import ServiceSettings
from sda_features import artifacts
from sda_features.artifacts import atomic_file, atomic_folder, check_folder
from sda_features.cli.failures import explain
from sda_features.cli.main import cli, main
from sda_features.errors import OnlineStoreError, SettingsError
from sda_features.serving import AsyncEmbeddingClient, EmbeddingClient

pytestmark = pytest.mark.fault


@pytest.mark.parametrize("output", ["/dev/null", "a-file", "foreign"])
@pytest.mark.parametrize("verb", ["export", "adapt"])
def test_an_output_that_is_no_folder_of_ours_is_refused(tmp_path, checkpoint, catalogue, fails, verb, output):
    (tmp_path / "a-file").write_text("mine")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("years of work")
    target = tmp_path / output  # an absolute name replaces the folder
    arguments = {"export": [checkpoint], "adapt": [catalogue, "--model", tmp_path, "--max-bad-rows", 1]}[verb]
    fails(verb, *arguments, "-o", target, status=1 if output == "foreign" else 2)
    assert Path("/dev/null").is_char_device()
    assert (tmp_path / "a-file").read_text() == "mine"
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["thesis.tex"]


def test_a_report_needs_a_folder_that_exists(tmp_path, fails):
    found = fails("materialize", "x", "--model", "m", "--report", tmp_path / "no" / "report", status=2)
    assert "create it first" in found


@pytest.mark.parametrize("write", [atomic_file, atomic_folder])
def test_the_library_refuses_too(tmp_path, write):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    wrong = tmp_path / ("folder" if write is atomic_file else "file")
    for target in (Path("/dev/null"), tmp_path / "loop", tmp_path / "file" / "below", Path("a\0b"), wrong):
        with pytest.raises(SettingsError), write(target):
            pytest.fail("opened")
    with pytest.raises(SettingsError, match="is not a run"):
        check_folder(tmp_path, {"x"}, "a run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "loop"]


WRITER = """
import sys
from pathlib import Path
from sda_features import artifacts
if sys.argv[2] == "fall-back":
    def without(first, second):
        raise OSError(artifacts.errno.ENOSYS, "no exchange")
    artifacts._rename_exchange = without
number = 0
while True:
    with artifacts.atomic_folder(Path(sys.argv[1])) as folder:
        for name in "ab":
            (folder / name).write_text(str(number))
    number += 1
    print(number, flush=True)
"""


@pytest.mark.parametrize("scheme", ["exchange", "fall-back"])
def test_a_killed_exchange_leaves_the_old_folder_or_the_new_one(tmp_path, scheme):
    target = tmp_path / "out"
    for kill in range(6):
        command = [sys.executable, "-c", WRITER, str(target), scheme]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            writer.stdout.readline()
            time.sleep(0.003 * kill)
            writer.send_signal(signal.SIGKILL)
        if scheme == "fall-back":
            artifacts.remove_leftovers(target)
        assert (target / "a").read_text() == (target / "b").read_text()
    with atomic_folder(target) as folder:
        (folder / "last").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "leftovers stayed"
    assert [path.name for path in target.iterdir()] == ["last"]


def test_leftovers_of_a_living_writer_stay(tmp_path):
    with atomic_folder(tmp_path / "out") as first:
        (first / "a").touch()
        with atomic_folder(tmp_path / "out") as second:
            (second / "b").touch()
        assert (first / "a").exists()
    assert (tmp_path / "out" / "a").exists()


ERRORS = {
    "disk full": (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "/data/x: No space left"),
    "read-only": (OSError(errno.EROFS, "Read-only file system", "/data/x"), "can be written"),
    "no rights": (PermissionError(errno.EACCES, "Permission denied", "/data/x"), "ask for the rights"),
    "too many files": (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
    "a loop": (OSError(errno.ELOOP, "Too many levels", "/data/x"), "go in a circle"),
    "no memory": (MemoryError(), "Memory ran out. Lower --batch-size"),
    "anything": (KeyError("x"), "KeyError: 'x'. This was not foreseen: --verbose"),
    "nothing said": (RuntimeError(), "RuntimeError. This was not foreseen"),
    "long": (ValueError("x\n" * 9000), "This was not foreseen"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_whatever_is_raised_is_one_message(kind, capsys, monkeypatch):
    error, message = ERRORS[kind]

    def fail(*_):
        raise error

    monkeypatch.setattr(cli, "invoke", fail)
    for verbose in (False, True):
        with pytest.raises(SystemExit) as ended:
            main(["--verbose", "versions"] if verbose else ["versions"])
        found = capsys.readouterr().err
        assert ended.value.code == 1
        assert message in found
        assert ("Traceback" in found) == verbose
    assert "\n" not in explain(error)
    assert len(explain(error)) < 2500


def test_an_interrupt_is_no_traceback(capsys, monkeypatch):
    monkeypatch.setattr(cli, "invoke", lambda _: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(SystemExit) as ended:
            main(["versions"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_limit_on_file_sizes_leaves_the_earlier_file(tmp_path):
    target = tmp_path / "a"
    target.write_text("old")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError) as error, atomic_file(target) as temporary:
            temporary.write_bytes(b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "ulimit -f" in explain(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert target.read_text() == "old"


def test_one_id_is_no_list_of_ids():
    with (
        EmbeddingClient("redis://localhost:1", project="p") as client,
        pytest.raises(TypeError, match="a list"),
    ):
        client.get("B001")


def test_a_client_says_that_it_belongs_to_another_event_loop(redis_server):
    host, port = redis_server
    client = AsyncEmbeddingClient(f"redis://{host}:{port}", project="loops")

    async def first():
        await client.ping()
        await client.close()

    asyncio.run(first())
    with pytest.raises(OnlineStoreError, match="another event loop"):
        asyncio.run(client.ping())


def test_what_kubernetes_sets_for_a_service_called_ranking_is_not_meant(tmp_path):
    own = {"RANKING_RUN": str(tmp_path), "RANKING_REPO": str(tmp_path)}
    links = {f"RANKING_{name}": "x" for name in (
        "SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_80_TCP", "PORT_80_TCP_ADDR",
        "PORT_80_TCP_PORT", "PORT_80_TCP_PROTO",
    )}  # fmt: skip
    assert ServiceSettings.from_environment(own | links) == ServiceSettings.from_environment(own)
    with pytest.raises(SettingsError, match="servise"):
        ServiceSettings.from_environment(own | {"RANKING_SERVISE_HOST": "x"})
