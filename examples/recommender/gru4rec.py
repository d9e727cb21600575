"""GRU4Rec: a recurrent net over the user's items (Hidasi et al. 2016), as a package of its own.

Trained as SASRec is with `--loss ce`: softmax over the catalogue, the next item at every position,
and one representation of an item as input and as output. `--loss` is not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Self, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sda_features.config import RecommenderSettings
from sda_features.logs.interactions import Interactions
from sda_features.recommenders.base import Batch, SequenceRecommender
from sda_features.recommenders.representations import ItemEncoder, ItemVectors
from sda_features.recommenders.softmax import softmax_loss


@final
class GRU4Rec(SequenceRecommender):
    """h_t = (1 - z) h_{t-1} + z n, with z = s(W_z x + U_z h), n = tanh(W x + U (r * h)) (paper, Eq. 1-4).

    The paper has no biases, and nor has this, so padding (x = 0) leaves h_0 = 0 as it is. torch
    writes 1 - z for z, and r * (U h) for U (r * h).
    """

    def __init__(
        self,
        item_count: int,
        settings: RecommenderSettings,
        vectors: ItemVectors | None,
        trained: NDArray[np.bool_] | None = None,
    ) -> None:
        super().__init__(settings)
        self.items = ItemEncoder(item_count, settings, vectors, trained)
        self.gru = nn.GRU(settings.hidden_dim, settings.hidden_dim, bias=False, batch_first=True)

    @classmethod
    def build(cls, train: Interactions, settings: RecommenderSettings, vectors: ItemVectors | None) -> Self:
        """A fresh model for the items of `train`."""
        return cls(train.item_count, settings, vectors, train.item_counts > 0)

    def batches(self, train: Interactions, random: np.random.Generator) -> Iterator[Batch]:
        """Users with 2 training items or more: `histories` and the `targets` that came next, int64 [B, L]."""
        users = random.permutation(np.flatnonzero(train.lengths >= 2))
        for start in range(0, len(users), self.settings.batch_size):
            chosen = users[start : start + self.settings.batch_size]
            items = torch.from_numpy(train.recent(chosen, self.settings.max_length + 1)).long()
            yield {"histories": items[:, :-1], "targets": items[:, 1:]}

    def loss(self, batch: Batch) -> Tensor:
        """`softmax_loss` over the real positions of a batch."""
        real, table = batch["histories"] > 0, self.items.table()
        inputs = F.embedding(batch["histories"], table, padding_idx=0)  # padding must stay zero
        return softmax_loss(self._run(inputs)[real], table, batch["targets"][real], self.items.candidates)

    def user_states(self, users: Tensor, histories: Tensor) -> Tensor:
        """State after the last item, float32 [B, d]; `users` is not used."""
        return self._run(self.items(histories))[:, -1]

    def state_after(self, representations: Tensor) -> Tensor:
        """See `SequenceRecommender`; a row of padding comes first, so that no history is no special case."""
        recent = representations[-self.settings.max_length :]
        return self._run(F.pad(recent, (0, 0, 1, 0)))[-1]

    def _run(self, inputs: Tensor) -> Tensor:
        """State after each position: float32 [..., L, d] -> [..., L, d]; inputs count sqrt(d) times, as in SASRec."""
        inputs = inputs * math.sqrt(self.settings.hidden_dim)
        states: Tensor = self.gru(F.dropout(inputs, self.settings.dropout, self.training))[0]
        return states
