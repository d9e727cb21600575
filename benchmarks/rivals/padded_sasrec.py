"""SASRec as it is usually written without a library: every padded position counts."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from rivals.epochs import LONGEST, LOSSES, Seconds, epoch, targets, timed
from torch import Tensor

from sda_features.evaluation.protocols import Scorer
from sda_features.logs.splits import Split
from sda_features.recommenders.base import Batch
from sda_features.recommenders.sasrec import SASRec


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

    def check(self) -> tuple[Scorer, Split]:
        """Losses without dropout must be ours; our scores of the same weights, whose metrics must be its own."""
        for loss, model in self._models.items():
            batch = next(model.eval().batches(self._split.train, np.random.default_rng(0)))
            model.load_state_dict(self._ours[loss].state_dict())
            torch.testing.assert_close(padded_loss(model, batch), self._ours[loss].eval().loss(batch))
        return self._ours["bce"].scorer(self._split.test.history), self._split

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
        table, wanted = model.item_table(), batch["targets"][real]
        if (candidates := model.items.candidates) is not None:  # items of the test alone do not compete
            table, wanted = table[candidates], torch.searchsorted(candidates, wanted)
        return F.cross_entropy(states[real] @ table[1:].T, wanted - 1)
    positive = (states * model.items(batch["targets"])).sum(-1)[real]
    negative = (states * model.items(batch["negatives"])).sum(-1)[real]
    return F.softplus(-positive).mean() + F.softplus(negative).mean()
