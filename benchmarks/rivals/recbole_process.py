"""RecBole 1.2.1 in an environment and a process of its own (recbole_worker.py)."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rivals.epochs import LOSSES, Seconds

from sda_features.evaluation.protocols import Scorer
from sda_features.logs.splits import Split

WORKER = Path(__file__).with_name("recbole_worker.py")


class RecBole:
    """RecBole on one log, in a process of its own."""

    name = "RecBole 1.2.1"

    def __init__(self, python: Path, split: Split, *, quick: bool) -> None:
        self._folder = tempfile.TemporaryDirectory()
        folder, log = Path(self._folder.name), split.interactions
        (folder / "log").mkdir()
        place = np.arange(len(log.items)) - np.repeat(log.offsets[:-1], log.lengths)
        rows = np.stack([log.users, log.items, place], axis=1)
        header = "user_id:token\titem_id:token\ttimestamp:float"
        np.savetxt(folder / "log/log.inter", rows, fmt="%d", delimiter="\t", header=header, comments="")
        self._errors = (folder / "errors.txt").open("w+")
        self._process = subprocess.Popen(
            [python, WORKER, folder, "1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._split, self._timed = split, 512 if quick else 4096
        sizes = self._answer()
        self.samples = sizes["samples"]
        if (sizes["users"], sizes["items"]) != (len(split.test.users), split.train.item_count):
            raise SystemExit(f"RecBole read another log: {sizes}")
        self.train_size = {
            loss: self._faster(
                (256,) if quick else (2048, 256), lambda size, loss=loss: self._train(loss, size)
            )
            for loss in LOSSES
        }
        self.evaluation_size = self._faster(
            (4096, 256), lambda size: self._ask("evaluate", size=size, cutoff=10)
        )

    def train(self, loss: str) -> Seconds:
        """Some batches."""
        return self._train(loss, self.train_size[loss])

    def evaluate(self, cutoff: int = 10) -> Seconds:
        """The test users; with Hit@k and NDCG@k."""
        return self._ask("evaluate", size=self.evaluation_size, cutoff=cutoff)

    def check(self) -> tuple[Scorer, Split]:
        """RecBole's own scores, and the split under which nothing is hidden: the metrics must be its own."""
        path, split = Path(self._folder.name) / "scores.npz", self._split
        self._ask("export", path=str(path))
        with np.load(path) as arrays:
            table = np.zeros((split.train.item_count + 1, arrays["table"].shape[1]), np.float32)
            table[arrays["items"]] = arrays["table"]
            states = np.zeros((split.train.user_count, table.shape[1]), np.float32)
            states[arrays["users"]] = arrays["states"]
            if not np.array_equal(np.sort(arrays["users"]), split.test.users):
                raise SystemExit("the two evaluate different users")
        log = split.interactions
        last = np.isin(np.arange(len(log.items)), log.offsets[1:] - 1)  # the target, which is never hidden
        unseen = replace(split, test=replace(split.test, history=log.where(last)))
        return lambda users: states[users] @ table.T, unseen

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
        self._errors.close()
        self._folder.cleanup()

    def _train(self, loss: str, size: int) -> Seconds:
        return self._ask("train", loss=LOSSES[loss], size=size, batches=max(1, self._timed // size))

    def _faster(self, sizes: tuple[int, ...], job: Callable[[int], Seconds]) -> int:
        """The size with the least CPU time a sample in a second run."""
        found = {size: [job(size), job(size)][1] for size in sizes}
        return min(found, key=lambda size: found[size]["cpu"] / found[size].get("samples", 1))

    def _ask(self, do: str, **request: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise SystemExit(f"RecBole's process ended:\n{self._errors.read()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer
