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
the faster of 4,096 users (its default) and 256. The floor of a ranking is its floating-point
operations (states and product) at the speed of a 2,048 x 2,048 matrix product.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import matmul_flops, median, options, paired_ratio, report
from rivals.epochs import LONGEST, LOSSES, Seconds, epoch, timed
from rivals.padded_sasrec import PaddedLoop
from rivals.recbole_process import RecBole
from torch.utils.flop_counter import FlopCounterMode

from sda_features.config import EvaluationSettings, RecommenderSettings
from sda_features.evaluation.protocols import Scorer, evaluate
from sda_features.logs.interactions import Interactions, index_interactions, k_core, read_interactions
from sda_features.logs.splits import Split, leave_one_out
from sda_features.recommenders.sasrec import SASRec

PLACE = Path(__file__).parents[1] / ".venv-recbole/bin/python"
QUICK_USERS = 1000
DIFFERENT_USERS = 3  # float32 products of another batch size may swap two scores at the cut-off


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
    result: dict[str, Any] = {"check": agreement(*rival.check(), rival)}
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
    least = ranking_flops(models["bce"], split) / matmul_flops()
    result["evaluation"] = {"batch": rival.evaluation_size, **figures(pairs, ""), "floor": round(least, 3)}
    return result


def ranked(score: Scorer, split: Split, cutoff: int = 10) -> dict[str, float | int | None]:
    """Our metrics under the full ranking of the test users."""
    return evaluate(score, split, EvaluationSettings(cutoff=cutoff), protocols=("full",)).metrics()


def ranking_flops(model: SASRec, split: Split) -> int:
    """Floating-point operations of all test users' states and of their product with the item table."""
    with FlopCounterMode(display=False) as counter:
        states = model.states_after(split.test.history, split.test.users)
    return int(counter.get_total_flops() + 2 * states.size * (split.train.item_count + 1))


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
    print(f"  its operations at the speed of a large product take {one['floor']:.2f} s")
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
