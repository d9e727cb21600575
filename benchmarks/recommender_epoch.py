"""SASRec's training and full-ranking evaluation against RecBole 1.2.1: CPU time of one thread each.

python benchmarks/recommender_epoch.py [--quick] [--recbole PYTHON] [--interactions LOG ...]

RecBole needs an environment of its own:
    python3.11 -m venv .venv-recbole
    .venv-recbole/bin/pip install torch==2.13.0 'numpy<2' 'scipy<1.13' 'pandas<2.2' pyyaml tqdm colorlog==4.7.2 \
        colorama==0.4.4 scikit-learn tensorboard texttable psutil
    .venv-recbole/bin/pip install --no-deps recbole==1.2.1
(`--no-deps` leaves out ray, thop, plotly and others that are not reached here.)
Without it `--quick` measures the padded loop below instead, and anything else ends with this text.

Both have width 50, two blocks with a feed-forward width of 50, one head, dropout 0.5, 50 positions,
and draw one negative a target (BCE here, BPR there) or a softmax over the catalogue (CE).

An epoch is not the same on both sides. RecBole makes a sample of every prefix, its last 50 items
padded to 50, and trains the item that comes next. We take a user's last 51 training items once and
train at each position. Short histories give both the same targets; of longer ones RecBole's epoch
holds more, and its positions have seen more. So there is a ratio for a target, which is the headline,
and one for an epoch. We run whole epochs of 128 users a step, `sda-features train`'s default. RecBole
runs some of its batches in its own trainer's loop, and its epoch is that time a sample times its
samples; its batch size is the faster of 2,048 (its default) and 256.

Both evaluations rank the whole catalogue for the same users, for Hit@10 and NDCG@10. RecBole's full
ranking of sequences hides nothing but padding; ours hides what the user took before too. The ranks of
RecBole's own scores without hiding must give its metrics before anything is timed. Its batch size is
the faster of 4,096 users (its default) and 256.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import copy
import json
import math
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import median, options, paired_ratio, report
from torch import Tensor

from sda_features.config import EvaluationSettings, RecommenderSettings
from sda_features.evaluation.protocols import Scorer, evaluate
from sda_features.interactions import Interactions, index_interactions, k_core, read_interactions
from sda_features.recommenders.base import Batch
from sda_features.recommenders.sasrec import SASRec
from sda_features.splits import Split, leave_one_out

WORKER = Path(__file__).with_name("recbole_worker.py")
PLACE = Path(__file__).parents[1] / ".venv-recbole/bin/python"
LOSSES = {"bce": "BPR", "ce": "CE"}
LONGEST, QUICK_USERS = 50, 1000
DIFFERENT_USERS = 3  # float32 products of another batch size may swap two scores at the cut-off
Seconds = dict[str, float]  # wall, cpu and, of training, samples


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

    def check(self) -> str:
        """Our metrics of RecBole's scores, nothing hidden, must be RecBole's."""
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
        return agreement(lambda users: states[users] @ table.T, unseen, self)

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


class PaddedLoop:
    """What is usually written without a library, with our weights and batches: every padded position counts."""

    name = "a plain padded PyTorch loop"

    def __init__(self, models: dict[str, SASRec], split: Split) -> None:
        self._ours, self._models, self._split = models, copy.deepcopy(models), split
        self.samples = targets(split)
        self.train_size, self.evaluation_size = dict.fromkeys(LOSSES, 128), 256

    def train(self, loss: str) -> Seconds:
        """One epoch."""
        model = self._models[loss]
        return epoch(model, self._split, lambda batch: padded_loss(model, batch))

    def evaluate(self, cutoff: int = 10) -> Seconds:
        """The best k of each batch of users; with Hit@k and NDCG@k."""
        model, test, hits, gains = self._models["bce"].eval(), self._split.test, 0.0, 0.0

        def job() -> None:
            nonlocal hits, gains
            for start in range(0, len(test.users), self.evaluation_size):
                users = test.users[start : start + self.evaluation_size]
                histories = torch.from_numpy(test.history.recent(users, LONGEST)).long()
                scores = padded_states(model, histories)[:, -1] @ model.item_table().T
                scores[:, 0] = -math.inf
                for row, user in enumerate(users):
                    scores[row, test.history.items[slice(*test.history.offsets[user : user + 2])]] = -math.inf
                wanted = torch.from_numpy(test.targets[start : start + self.evaluation_size])
                found = scores.topk(cutoff).indices == wanted[:, None]
                hits += found.sum().item()
                gains += (found / torch.arange(2, cutoff + 2).log2()).sum().item()

        with torch.inference_mode():
            seconds = timed(job)
        return seconds | {f"hit@{cutoff}": hits / len(test.users), f"ndcg@{cutoff}": gains / len(test.users)}

    def check(self) -> str:
        """Losses without dropout, and the metrics of the same weights, must be ours."""
        for loss, model in self._models.items():
            batch = next(model.eval().batches(self._split.train, np.random.default_rng(0)))
            model.load_state_dict(self._ours[loss].state_dict())
            torch.testing.assert_close(padded_loss(model, batch), self._ours[loss].eval().loss(batch))
        return agreement(self._ours["bce"].scorer(self._split.test.history), self._split, self)

    def close(self) -> None:
        """Nothing to end."""


def padded_states(model: SASRec, histories: Tensor) -> Tensor:
    """int64 [B, L] -> float32 [B, L, d], all L positions computed with a dense mask [B, L, L]."""

    def drop(values: Tensor) -> Tensor:
        return F.dropout(values, model.settings.dropout, model.training)

    length, width = histories.shape[1], model.settings.hidden_dim
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    allowed = (causal & (histories > 0)[:, None, :]) | torch.eye(length, dtype=torch.bool)
    states = drop(model.items(histories) * math.sqrt(width) + model.positions[-length:])
    for block in model.blocks:
        query, (key, value) = block.attention_norm(states), block.key_value(states).chunk(2, dim=-1)
        logits = block.query(query) @ key.transpose(1, 2) / math.sqrt(width)
        weights = drop(logits.masked_fill(~allowed, -math.inf).softmax(dim=-1))
        states = block.forward_norm(query + weights @ value)
        states = states + drop(block.outer(drop(block.inner(states).relu())))
    return model.last_norm(states)


def padded_loss(model: SASRec, batch: Batch) -> Tensor:
    """`SASRec.loss` of one head over `padded_states`."""
    states, real = padded_states(model, batch["histories"]), batch["histories"] > 0
    if model.settings.loss == "ce":
        return F.cross_entropy(states[real] @ model.item_table()[1:].T, batch["targets"][real] - 1)
    positive = (states * model.items(batch["targets"])).sum(-1)[real]
    negative = (states * model.items(batch["negatives"])).sum(-1)[real]
    return F.softplus(-positive).mean() + F.softplus(negative).mean()


def main() -> None:
    """Measure and print."""
    arguments = options(
        __doc__ or "",
        ("--recbole", {"type": Path, "default": PLACE, "help": "a Python that has recbole 1.2.1"}),
        ("--interactions", {"type": Path, "action": "append", "help": "a log; none: a generated one"}),
    )
    python = arguments.recbole.absolute()  # not resolved: the link belongs to the environment
    if not (python.exists() or arguments.quick):
        raise SystemExit(f"No RecBole at {python}. Make its environment, or name one:\n\n{__doc__}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    quick = arguments.quick
    logs = {path.parent.name: read_interactions(path) for path in arguments.interactions or []}
    results: dict[str, dict[str, Any]] = {}
    for name, log in (logs or {"generated": generated_log(QUICK_USERS if quick else 5000)}).items():
        split = leave_one_out(k_core(log.where(log.users < QUICK_USERS), 1) if quick else log)
        models = {
            loss: SASRec.build(split.train, RecommenderSettings(loss=loss, max_length=LONGEST), None)
            for loss in LOSSES
        }
        rival = RecBole(python, split, quick=quick) if python.exists() else PaddedLoop(models, split)
        results[name] = compare(rival, models, split, rounds=2)
        rival.close()
        show(name, rival.name, split, results[name])
    ratio = min(found["bce"]["target_ratio"] for found in results.values())
    report("recommender_epoch", against=rival.name, ratio=ratio, logs=results)


def compare(
    rival: RecBole | PaddedLoop, models: dict[str, SASRec], split: Split, *, rounds: int
) -> dict[str, Any]:
    """Values first, then training with both losses and the evaluation, in turns."""
    epoch(models["bce"], split, models["bce"].loss)  # warm, and weights that are not random
    rival.train("bce")
    result: dict[str, Any] = {"check": rival.check()}
    for loss, model in models.items():
        pairs = [(rival.train(loss), epoch(model, split, model.loss)) for _ in range(rounds)]
        result[loss] = {
            "batch": rival.train_size[loss],
            "samples_timed": pairs[0][0]["samples"],
            **training_figures(pairs, rival.samples),
        }
    scorer = models["bce"].scorer
    pairs = [
        (rival.evaluate(), timed(lambda: ranked(scorer(split.test.history, split.test.users), split)))
        for _ in range(rounds + 1)
    ]
    result["evaluation"] = {"batch": rival.evaluation_size, **figures(pairs, "")}
    return result


def epoch(model: SASRec, split: Split, loss: Callable[[Batch], Tensor]) -> Seconds:
    """The steps that `sda_features.recommenders.train` takes in an epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.98), fused=True)
    model.train()

    def job() -> None:
        for batch in model.batches(split.train, np.random.default_rng(0)):
            value = loss(batch)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    return timed(job) | {"samples": targets(split)}


def ranked(score: Scorer, split: Split, cutoff: int = 10) -> dict[str, float | int | None]:
    """Our metrics under the full ranking of the test users."""
    return evaluate(score, split, EvaluationSettings(cutoff=cutoff), protocols=("full",)).metrics()


def agreement(score: Scorer, split: Split, rival: RecBole | PaddedLoop) -> str:
    """Both metrics of the same scores, which must agree: at 10, and where more than a few users have a hit."""
    lines, allowed = [], DIFFERENT_USERS / len(split.test.users)
    for cutoff in (10, split.train.item_count // 5):
        ours, theirs = ranked(score, split, cutoff), rival.evaluate(cutoff)
        for name in (f"hit@{cutoff}", f"ndcg@{cutoff}"):
            mine, other = ours[f"{name}/full/all"] or 0.0, theirs[name]
            if abs(mine - other) > allowed:
                raise SystemExit(f"{name} differs: {mine} here, {other} there")
            lines.append(f"{name} {mine:.6f} and {other:.6f}")
    if mine < 10 * allowed:
        raise SystemExit(f"vacuous: {lines[-1]} of {len(split.test.users)} users")
    return ", ".join(lines)


def timed(job: Callable[[], object]) -> Seconds:
    """Seconds of the wall clock and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    job()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def training_figures(pairs: list[tuple[Seconds, Seconds]], samples: int) -> dict[str, float]:
    """Seconds of an epoch of `samples` theirs and of all targets of ours; ratios an epoch and a target."""
    theirs = [{clock: one[clock] / one["samples"] * samples for clock in ("cpu", "wall")} for one, _ in pairs]
    result = figures([(one, other) for one, (_, other) in zip(theirs, pairs, strict=True)], "epoch_")
    own = pairs[0][1]["samples"]
    for suffix in ("", "_wall"):
        result[f"target_ratio{suffix}"] = round(result[f"epoch_ratio{suffix}"] * own / samples, 2)
    return result | {"targets": own, "rival_targets": samples}


def figures(pairs: list[tuple[Seconds, Seconds]], prefix: str) -> dict[str, float]:
    """Medians and the paired ratio of (theirs, ours), of both clocks."""
    result = {}
    for clock, suffix in (("cpu", ""), ("wall", "_wall")):
        theirs, ours = ([one[clock] for one in side] for side in zip(*pairs, strict=True))
        result[f"{prefix}ratio{suffix}"] = round(paired_ratio(theirs, ours), 2)
        result[f"{prefix}seconds{suffix}"] = round(median(ours), 3)
        result[f"{prefix}rival_seconds{suffix}"] = round(median(theirs), 3)
    return result


def targets(split: Split) -> int:
    """How many next items an epoch of ours trains."""
    return int(np.minimum(split.train.lengths - 1, LONGEST).clip(0).sum())


def show(name: str, rival: str, split: Split, found: dict[str, Any]) -> None:
    """One table."""
    log = split.interactions
    print(f"\n{name}: {log.user_count} users, {log.item_count} items, {len(log.items)} interactions")
    print(f"against {rival}; the same scores give {found['check']}")
    print(
        f"{'CPU seconds, one thread':26} {'ours':>9} {'theirs':>9} {'ratio':>7} {'a target':>9}  their batch"
    )
    for loss, other in LOSSES.items():
        one = found[loss]
        print(
            f"{f'epoch, {loss} / {other}':26} {one['epoch_seconds']:9.2f} {one['epoch_rival_seconds']:9.2f} "
            f"{one['epoch_ratio']:6.1f}x {one['target_ratio']:8.1f}x  {one['batch']:11,}"
        )
    one = found["evaluation"]
    print(
        f"{'full-ranking evaluation':26} {one['seconds']:9.2f} {one['rival_seconds']:9.2f} "
        f"{one['ratio']:6.1f}x {'':9}  {one['batch']:11,}"
    )
    one = found["bce"]
    print(
        f"next items trained in an epoch: {one['targets']:,} here, {one['rival_targets']:,} there, "
        f"whose epoch is scaled from {one['samples_timed']:,}"
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
