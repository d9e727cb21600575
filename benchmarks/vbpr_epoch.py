"""One training epoch of VBPR against the usual loops, on a generated log, in processor time of one thread.

Both loops draw a negative for each interaction in Python, again while the user took it, and apply
E and B' to positives and negatives apart, with torch's default Adam. One gathers the vectors of its
batch, the other projects the whole catalogue in each step; both are common. First all three get the
same weights and the same triples and must end in the same weights.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from common import median, options, paired_ratio, report, take_turns
from torch import Tensor, nn

from sda_features.config import RecommenderSettings
from sda_features.logs.interactions import Interactions, index_interactions
from sda_features.recommenders.representations import prepare_vectors
from sda_features.recommenders.vbpr import VBPR

SETTINGS = RecommenderSettings(hidden_dim=64, batch_size=1024, l2=1e-2)
OURS, GATHERED, WHOLE = "sda-features", "loop, rows of the batch", "loop, whole catalogue"


class PlainVBPR(nn.Module):
    """The model as it is usually written: a table for each symbol of the formula."""

    def __init__(self, fast: VBPR, whole: bool) -> None:
        super().__init__()
        hidden, self.whole = SETTINGS.hidden_dim, whole
        factors, projection, vectors = fast.item_factors, fast.projection, fast.values
        assert factors is not None
        assert projection is not None
        assert vectors is not None
        users, items, rows = (part.detach().clone() for part in (fast.user_factors, factors, projection))
        self.vectors = vectors
        self.gamma_user = nn.Embedding.from_pretrained(users[:, :hidden].clone(), freeze=False)
        self.theta_user = nn.Embedding.from_pretrained(users[:, hidden:].clone(), freeze=False)
        self.gamma_item = nn.Embedding.from_pretrained(items[:, :hidden].clone(), freeze=False)
        self.bias = nn.Embedding.from_pretrained(items[:, hidden:].clone(), freeze=False)
        self.kernel = nn.Linear(vectors.shape[1], hidden, bias=False)
        self.visual_bias = nn.Linear(vectors.shape[1], 1, bias=False)
        self.kernel.weight.data.copy_(rows[:hidden])
        self.visual_bias.weight.data.copy_(rows[hidden:])

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """BPR with the penalty of `VBPR.loss`."""
        gamma, theta = self.gamma_user(users), self.theta_user(users)
        projected = (self.kernel(self.vectors), self.visual_bias(self.vectors)) if self.whole else None
        scores, penalty = [], gamma.square().sum() + theta.square().sum()
        for items in (positives, negatives):
            if projected:
                visual, visual_bias = projected[0][items], projected[1][items]
            else:
                vectors = self.vectors[items]
                visual, visual_bias = self.kernel(vectors), self.visual_bias(vectors)
            factors, bias = self.gamma_item(items), self.bias(items)
            score = (gamma * factors).sum(1) + (theta * visual).sum(1) + (bias + visual_bias).squeeze(1)
            scores.append(score)
            penalty = penalty + factors.square().sum() + bias.square().sum()
        penalty = penalty / len(users)
        penalty = penalty + self.kernel.weight.square().sum() + self.visual_bias.weight.square().sum()
        return -F.logsigmoid(scores[0] - scores[1]).mean() + SETTINGS.l2 * penalty

    def difference(self, fast: VBPR) -> float:
        """Largest absolute difference of a weight."""
        ours = (fast.user_factors, fast.item_factors, fast.projection)
        theirs = (
            torch.cat([self.gamma_user.weight, self.theta_user.weight], dim=1),
            torch.cat([self.gamma_item.weight, self.bias.weight], dim=1),
            torch.cat([self.kernel.weight, self.visual_bias.weight]),
        )
        return max(
            float((a - b).detach().abs().max()) for a, b in zip(ours, theirs, strict=True) if a is not None
        )


def main() -> None:
    """Compare, measure, print."""
    quick = options(__doc__ or "").quick
    users, items, interactions, dim, rounds = (
        (6_000, 3_000, 40_000, 512, 3) if quick else (22_000, 12_000, 150_000, 1024, 5)
    )
    torch.set_num_threads(1)
    log = generated_log(users, items, interactions)
    fast = fresh(log, dim)
    plain = {GATHERED: PlainVBPR(fast, whole=False), WHOLE: PlainVBPR(fast, whole=True)}
    before = fast.user_factors.detach().clone()
    triples = [batch for batch, _ in zip(fast.batches(log, np.random.default_rng(1)), range(5), strict=False)]
    train(fast.parameters(), (lambda batch=batch: fast.loss(batch) for batch in triples), fused=True)
    moved = float((fast.user_factors - before).detach().abs().max())
    for name, model in plain.items():
        train(
            model.parameters(),
            (lambda batch=batch, model=model: model.loss(*batch.values()) for batch in triples),
        )
        difference = model.difference(fast)
        if not difference < 0.01 * moved:
            raise SystemExit(f"{name}: weights differ by {difference} after steps of {moved}")

    random, seen = np.random.default_rng(2), sets(log)

    def ours() -> None:
        train(
            fast.parameters(),
            (lambda b=batch: fast.loss(b) for batch in fast.batches(log, random)),
            fused=True,
        )

    def loop(model: PlainVBPR) -> Callable[[], None]:
        return lambda: train(
            model.parameters(), (lambda b=batch: model.loss(*b) for batch in usual_batches(log, seen, random))
        )

    seconds = take_turns(
        {OURS: ours, **{name: loop(model) for name, model in plain.items()}},
        rounds=rounds,
        clock=time.process_time,
    )
    print(
        f"\n{users:,} users, {items:,} items, {len(log.items):,} interactions, vectors of {dim}, "
        f"hidden {SETTINGS.hidden_dim}, batch {SETTINGS.batch_size}, one thread, processor time"
    )
    print(f"{'':26} {'epoch':>9} {'against ours':>13}")
    for name, found in seconds.items():
        print(f"{name:26} {median(found):7.2f} s {paired_ratio(found, seconds[OURS]):12.1f}x")
    report(
        "vbpr_epoch",
        against="a plain loop that gathers the rows of its batch",
        ratio=paired_ratio(seconds[GATHERED], seconds[OURS]),
        whole_catalogue_ratio=round(paired_ratio(seconds[WHOLE], seconds[OURS]), 3),
        seconds=round(median(seconds[OURS]), 3),
        torch=torch.__version__,
    )


def train(
    parameters: Iterator[nn.Parameter], losses: Iterator[Callable[[], Tensor]], fused: bool = False
) -> None:
    """A step of Adam for each loss; `fused` is what `sda_features.recommenders.training` asks for."""
    optimizer = torch.optim.Adam(parameters, lr=1e-3, betas=(0.9, 0.98), fused=fused or None)
    for loss in losses:
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()


def usual_batches(
    log: Interactions, seen: list[set[int]], random: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches with one negative at a time, drawn again while the user took it."""
    order = random.permutation(len(log.items))
    for start in range(0, len(order), SETTINGS.batch_size):
        chosen = order[start : start + SETTINGS.batch_size]
        users, positives = log.users[chosen], log.items[chosen]
        negatives = []
        for user in users.tolist():
            item = int(random.integers(1, log.item_count + 1))
            while item in seen[user]:
                item = int(random.integers(1, log.item_count + 1))
            negatives.append(item)
        yield torch.from_numpy(users), torch.from_numpy(positives).long(), torch.tensor(negatives)


def sets(log: Interactions) -> list[set[int]]:
    """Items of each user."""
    return [
        set(log.items[log.offsets[user] : log.offsets[user + 1]].tolist()) for user in range(log.user_count)
    ]


def generated_log(users: int, items: int, interactions: int) -> Interactions:
    """Users and items with long-tailed popularity; nobody is left out of the log."""
    random = np.random.default_rng(0)
    who = np.concatenate([np.arange(users), random.integers(0, users, interactions - users)])
    what = np.minimum(random.zipf(1.3, interactions) - 1, random.integers(0, items, interactions))
    return index_interactions(who, what, catalogue=[str(item) for item in range(items)])


def fresh(log: Interactions, dim: int) -> VBPR:
    """A model over random vectors."""
    vectors = np.random.default_rng(0).normal(0, 1, (log.item_count + 1, dim)).astype(np.float32)
    vectors[0] = 0
    torch.manual_seed(0)
    return VBPR.build(log, SETTINGS, prepare_vectors({"text": vectors}, log.item_count))


if __name__ == "__main__":
    main()
