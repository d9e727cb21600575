"""Commands on a disk that is really full, one after the other: a small tmpfs in a mount namespace of this process.

    unshare -rm python -m tests.hostile.full_disk FOLDER CHECKPOINT CATALOGUE MODEL HOST PORT

FOLDER is an empty folder, where the tmpfs is mounted. Prints one JSON object: command -> its message on the full
disk, whether what stood there before is whole, and what the next run, with space, exits with.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

from sda_features.cli.main import main
from sda_features.lvlm import finetune
from tests.feast_repo import applied_repo, config
from tests.workflows.conftest import QUICK

MEGABYTES = 8


def run(*arguments):
    """Exit status and standard error of a command."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as ended:
            return int(ended.code or 0), said.getvalue()
    return 0, said.getvalue()


def fill(folder):
    """Leave no block."""
    with contextlib.suppress(OSError), open(folder / "filler", "ab", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def content(folder):
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def trial(disk, *arguments, fill=fill):
    """A command with the disk made full by `fill`, then the same with space."""
    before = content(disk / "run")
    fill(disk)
    status, said = run(*arguments)
    whole = content(disk / "run") == before
    (disk / "filler").unlink(missing_ok=True)
    leftovers = [path.name for path in disk.rglob("*.tmp")]
    return {"status": status, "said": said, "whole": whole, "left": leftovers, "next": run(*arguments)}


def main_():
    disk, checkpoint, catalogue, model = map(Path, sys.argv[1:5])
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(disk)], check=True)
    log = disk / "log.csv"
    log.write_text(
        "user_id,item_id,timestamp\n" + "".join(f"u{n % 9},i{n * 13 % 40},{n}\n" for n in range(90))
    )
    found = {}
    train = ["train", log, *QUICK, "-o", disk / "run"]
    assert (done := run(*train))[0] == 0, done
    # Another seed replaces the run; the earlier one must stay.
    found["train"] = trial(disk, *train, "--seeds", "1")
    found["export"] = trial(disk, "export", checkpoint, "-o", disk / "export")
    repo = applied_repo(disk / "repo", config("full_disk", (sys.argv[5], int(sys.argv[6]))))
    base = ["--model", model, "--quantization", "none", "--device", "cpu", "--max-bad-rows", "1"]
    found["materialize"] = trial(disk, "materialize", catalogue, "--repo", repo, *base)
    original = finetune.save_checkpoint

    def save_on_a_full_disk(*arguments, **options):
        finetune.save_checkpoint = original
        fill(disk)
        return original(*arguments, **options)

    def fill_at_the_end(disk):
        finetune.save_checkpoint = save_on_a_full_disk

    steps = ["--steps", "2", "--batch-size", "8", "--validation-share", "0", "--resume"]
    adapt = ["adapt", catalogue, *base, *steps, "-o", disk / "adapt"]
    found["adapt"] = trial(disk, *adapt, fill=fill_at_the_end)
    print(json.dumps(found))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main_()
