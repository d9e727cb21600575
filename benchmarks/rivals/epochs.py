"""What an epoch is, and the clocks, on both sides of recommender_epoch.py."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sda_features.logs.splits import Split
from sda_features.recommenders.base import Batch
from sda_features.recommenders.sasrec import SASRec

LOSSES = {"bce": "BPR", "ce": "CE"}
LONGEST = 50
Seconds = dict[str, float]  # wall, cpu and, of training, samples


def epoch(model: SASRec, split: Split, loss: Callable[[Batch], Tensor]) -> Seconds:
    """The steps that `sda_features.recommenders.training` takes in an epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.98), fused=True)
    model.train()

    def job() -> None:
        for batch in model.batches(split.train, np.random.default_rng(0)):
            value = loss(batch)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    return timed(job) | {"samples": targets(split)}


def timed(job: Callable[[], object]) -> Seconds:
    """Seconds of the wall clock and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    job()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def targets(split: Split) -> int:
    """How many next items an epoch of ours trains."""
    return int(np.minimum(split.train.lengths - 1, LONGEST).clip(0).sum())
