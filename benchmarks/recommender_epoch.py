"""SASRec's training and full-ranking evaluation against RecBole 1.2.1: CPU time of one thread each.

python benchmarks/recommender_epoch.py [--quick] [--recbole PYTHON] [--interactions LOG ...]

RecBole needs an environment of its own:
    python3.11 -m venv .venv-recbole
    .venv-recbole/bin/pip install torch==2.13.0 'numpy<2' 'scipy<1.13' 'pandas<2.2' pyyaml tqdm colorlog==4.7.2 \
        colorama==0.4.4 scikit-learn tensorboard thop tabulate plotly texttable psutil 'setuptools<81'
    .venv-recbole/bin/pip install --no-deps recbole==1.2.1
(`--no-deps` leaves out ray, which only its hyper-parameter search imports.)

Both have width 50, two blocks with a feed-forward width of 50, one head, dropout 0.5, 50 positions,
and draw one negative a target (BCE here, BPR there) or a softmax over the catalogue (CE).
An epoch is not the same on both sides. RecBole makes a sample of every prefix, each padded to 50
positions and trained at its last one. We take a user's last 51 training items once and train at each
position. Short histories give both the same targets; of longer ones RecBole's epoch holds more. So
there is a ratio for an epoch and one for a target; the latter is the headline. We run whole epochs of 128
users a step; RecBole runs a few of its batches (2,048 samples, its default) in its own trainer's
loop, and its epoch is that time a sample times its samples.
RecBole's full ranking of sequences hides only the padding item; ours hides what the user took before too.
The ranks of its own scores without hiding must give its Hit@10 and NDCG@10 before anything is timed.
Its evaluation is timed at the faster of its default of 4,096 users a batch and 256.
Without RecBole's environment nothing is measured.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import itertools
import json
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import median, options, paired_ratio, report

from sda_features.config import EvaluationSettings, RecommenderSettings
from sda_features.evaluation.protocols import evaluate
from sda_features.interactions import Interactions, index_interactions, read_interactions
from sda_features.recommenders.sasrec import SASRec
from sda_features.splits import Split, leave_one_out

WORKER = Path(__file__).with_name("recbole_worker.py")
PLACE = Path(__file__).parents[1] / ".venv-recbole/bin/python"
LOSSES = {"bce": "BPR", "ce": "CE"}
LONGEST, EVALUATION_BATCHES = 50, (4096, 256)
DIFFERENT_USERS = 3  # float32 products of another batch size may swap two scores at the cut-off


class RecBole:
    """The worker process on one log."""

    def __init__(self, python: Path, log: Interactions, folder: Path, loss: str) -> None:
        (folder / "log").mkdir(parents=True, exist_ok=True)
        place = np.arange(len(log.items)) - np.repeat(log.offsets[:-1], log.lengths)
        rows = np.stack([log.users, log.items, place], axis=1)
        header = "user_id:token\titem_id:token\ttimestamp:float"
        np.savetxt(folder / "log/log.inter", rows, fmt="%d", delimiter="\t", header=header, comments="")
        self._errors = (folder / f"{loss}.txt").open("w+")
        self._process = subprocess.Popen(
            [python, WORKER, folder, loss, "1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.sizes = self._answer()

    def ask(self, do: str, **request: object) -> dict[str, Any]:
        """One request; see recbole_worker.py."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise SystemExit(f"RecBole's process ended:\n{self._errors.read()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def main() -> None:
    """Measure and print."""
    arguments = options(
        __doc__ or "",
        ("--recbole", {"type": Path, "default": PLACE, "help": "a Python that has recbole 1.2.1"}),
        ("--interactions", {"type": Path, "action": "append", "help": "a log; none: a generated one"}),
    )
    python = arguments.recbole.absolute()  # not resolved: the link belongs to the environment
    if not python.exists():
        message = f"Nothing measured: no RecBole at {python}. Make its environment, or name one:\n\n{__doc__}"
        if arguments.quick:  # `make bench` goes on
            print(message)
            return
        raise SystemExit(message)
    torch.set_num_threads(1)
    logs = {path.parent.name: read_interactions(path) for path in arguments.interactions or []}
    results = {}
    for name, log in (logs or {"generated": generated_log(1000 if arguments.quick else 5000)}).items():
        results[name] = compare(python, log, batches=1 if arguments.quick else 3, rounds=2)
        show(name, log, results[name])
    training = [found["bce"]["target_ratio"] for found in results.values()]
    report("recommender_epoch", against="RecBole 1.2.1", ratio=min(training), logs=results)


def compare(python: Path, log: Interactions, *, batches: int, rounds: int) -> dict[str, Any]:
    """Values first, then training with both losses and the evaluation, in turns."""
    split, found = leave_one_out(log), {}
    targets = int(np.minimum(split.train.lengths - 1, LONGEST).clip(0).sum())
    for ours, theirs in LOSSES.items():
        model = SASRec.build(split.train, RecommenderSettings(loss=ours, max_length=LONGEST), None)
        with tempfile.TemporaryDirectory() as folder:
            recbole = RecBole(python, log, Path(folder), theirs)
            recbole.ask("train", batches=batches)  # warm
            if ours == "bce":
                check(recbole, split, Path(folder) / "scores.npz")
                found["evaluation"] = evaluation(recbole, model, split, rounds)
            samples = min(2048 * batches, recbole.sizes["samples"])
            pairs = [(recbole.ask("train", batches=batches), epoch(model, split)) for _ in range(rounds)]
            recbole.close()
        figures = {
            "targets": targets,
            "recbole_targets": recbole.sizes["samples"],
            "recbole_batches_timed": batches,
        }
        for clock in ("cpu", "wall"):
            a = [one[clock] / samples for one, _ in pairs]
            b = [other[clock] / targets for _, other in pairs]
            ratio, suffix = paired_ratio(a, b), "" if clock == "cpu" else "_wall"
            figures[f"target_ratio{suffix}"] = round(ratio, 2)
            figures[f"epoch_ratio{suffix}"] = round(ratio * recbole.sizes["samples"] / targets, 2)
            figures[f"epoch_seconds{suffix}"] = round(median(b) * targets, 3)
            figures[f"recbole_epoch_seconds{suffix}"] = round(median(a) * recbole.sizes["samples"], 3)
        found[ours] = figures
    return found


def epoch(model: SASRec, split: Split) -> dict[str, float]:
    """Seconds of the steps that `sda_features.recommenders.train` takes in an epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.98), fused=True)
    model.train()
    wall, cpu = time.perf_counter(), time.process_time()
    for batch in model.batches(split.train, np.random.default_rng(0)):
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def evaluation(recbole: RecBole, model: SASRec, split: Split, rounds: int) -> dict[str, Any]:
    """Both full rankings of the test users."""
    tried = {size: recbole.ask("evaluate", batch=size)["cpu"] for size in EVALUATION_BATCHES}
    size = min(tried, key=tried.__getitem__)
    theirs, ours = [], []
    for _ in range(rounds):
        theirs.append(recbole.ask("evaluate", batch=size))
        wall, cpu = time.perf_counter(), time.process_time()
        evaluate(model.scorer(split.test.history), split, EvaluationSettings(), protocols=("full",)).metrics()
        ours.append({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu})
    figures: dict[str, Any] = {"recbole_batch": size}
    for clock, suffix in (("cpu", ""), ("wall", "_wall")):
        a, b = [one[clock] for one in theirs], [one[clock] for one in ours]
        figures[f"ratio{suffix}"] = round(paired_ratio(a, b), 2)
        figures[f"seconds{suffix}"] = round(median(b), 3)
        figures[f"recbole_seconds{suffix}"] = round(median(a), 3)
    return figures


def check(recbole: RecBole, split: Split, path: Path) -> None:
    """Our metrics of RecBole's scores must be RecBole's."""
    recbole.ask("export", path=str(path))
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
    ours = evaluate(
        lambda users: states[users] @ table.T, unseen, EvaluationSettings(), protocols=("full",)
    ).metrics()
    theirs = recbole.ask("evaluate", batch=EVALUATION_BATCHES[0])
    for name, allowed in itertools.product(("hit@10", "ndcg@10"), [DIFFERENT_USERS / len(split.test.users)]):
        mine = ours[f"{name}/full/all"]
        if not theirs[name] or mine is None or abs(mine - theirs[name]) > allowed:
            raise SystemExit(f"{name} differs: {mine} here, {theirs[name]} in RecBole")
        print(f"{name} of RecBole's scores: {mine:.6f} here, {theirs[name]:.6f} in RecBole")


def show(name: str, log: Interactions, found: dict[str, Any]) -> None:
    """One table."""
    print(f"\n{name}: {log.user_count} users, {log.item_count} items, {len(log.items)} interactions")
    print(f"{'CPU seconds, one thread':26} {'ours':>9} {'RecBole':>9} {'ratio':>7} {'a target':>9}")
    for loss, other in LOSSES.items():
        one = found[loss]
        print(
            f"{f'epoch, {loss} / {other}':26} {one['epoch_seconds']:9.2f} {one['recbole_epoch_seconds']:9.2f} "
            f"{one['epoch_ratio']:6.1f}x {one['target_ratio']:8.1f}x"
        )
    one = found["evaluation"]
    print(
        f"{'full-ranking evaluation':26} {one['seconds']:9.2f} {one['recbole_seconds']:9.2f} {one['ratio']:6.1f}x"
    )


def generated_log(users: int) -> Interactions:
    """Users with 5 to 40 items of 2,000, popular ones more often, none twice."""
    random, items = np.random.default_rng(0), 2000
    popularity = 1 / (20 + np.arange(items))
    lengths = random.integers(5, 41, users)
    chosen = [random.choice(items, n, replace=False, p=popularity / popularity.sum()) for n in lengths]
    who = np.repeat(np.arange(users), lengths)
    return index_interactions(who, np.concatenate(chosen), catalogue=[str(item) for item in range(items)])


if __name__ == "__main__":
    main()
