"""SASRec: self-attentive sequential recommendation (Kang and McAuley 2018).

The layout is that of the authors' code, which differs from the paper's text in one point: the
residual of each sub-layer starts at the normalised input, where section III-B writes
x + Dropout(g(LayerNorm(x))). Layers run on the real positions only (`packing`), so padding costs
nothing and cannot leak.
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
from sda_features.errors import SettingsError
from sda_features.evaluation.negatives import UnseenItems
from sda_features.logs.interactions import Interactions
from sda_features.recommenders.base import Batch, SequenceRecommender
from sda_features.recommenders.packing import Packing, attention, pack
from sda_features.recommenders.representations import ItemEncoder, ItemVectors
from sda_features.recommenders.softmax import softmax_loss

LAYER_NORM_EPSILON = 1e-8


def binary_loss(states: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """-mean [log sigmoid(h . e_pos) + log(1 - sigmoid(h . e_neg))] (paper, section III-E).

    Args:
        states: float [N, d], h of each position.
        positives: float [N, d], embedding of the next item.
        negatives: float [N, d], embedding of an item that the user never took.
    """
    positive = (states * positives).sum(-1)
    negative = (states * negatives).sum(-1)
    return F.softplus(-positive).mean() + F.softplus(negative).mean()


@final
class Block(nn.Module):
    """Self-attention, then a point-wise feed-forward net.

    q = LN(x); y = q + Attention(q W_Q, x W_K, x W_V); z = LN(y); z + FFN(z) with
    FFN(z) = Dropout(Dropout(ReLU(z W_1)) W_2). Only the query is normalised.
    """

    def __init__(self, settings: RecommenderSettings) -> None:
        super().__init__()
        width = settings.hidden_dim
        self.heads, self.rate = settings.heads, settings.dropout
        self.attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.forward_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)

    def forward(self, packed: Tensor, packing: Packing, *, last: bool = False) -> Tensor:
        """float [N, d], rows as in `packing` -> float [N, d], or with `last` the rows `packing.last` of it."""
        normed = self.attention_norm(packed[packing.last] if last else packed)
        key, value = self.key_value(packed).chunk(2, dim=1)
        rate = self.rate if self.training else 0.0
        attended = attention(
            self.query(normed), key, value, packing, heads=self.heads, causal=True, dropout=rate, last=last
        )
        normed = self.forward_norm(normed + attended)
        inner = F.dropout(F.relu(self.inner(normed)), self.rate, self.training)
        output: Tensor = normed + F.dropout(self.outer(inner), self.rate, self.training)
        return output


@final
class SASRec(SequenceRecommender):
    """See the module's docstring. Item representations serve as input (times sqrt(d)) and as output."""

    def __init__(
        self,
        item_count: int,
        settings: RecommenderSettings,
        vectors: ItemVectors | None,
        trained: NDArray[np.bool_] | None = None,
    ) -> None:
        super().__init__(settings)
        if settings.hidden_dim % settings.heads:
            raise SettingsError(
                f"hidden_dim {settings.hidden_dim} does not split over {settings.heads} heads."
            )
        self.items = ItemEncoder(item_count, settings, vectors, trained)
        self.positions = nn.Parameter(torch.empty(settings.max_length, settings.hidden_dim))
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.blocks))
        self.last_norm = nn.LayerNorm(settings.hidden_dim, eps=LAYER_NORM_EPSILON)
        nn.init.xavier_normal_(self.positions)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)

    @classmethod
    def build(cls, train: Interactions, settings: RecommenderSettings, vectors: ItemVectors | None) -> Self:
        """A fresh model for the items of `train`."""
        return cls(train.item_count, settings, vectors, train.item_counts > 0)

    def batches(self, train: Interactions, random: np.random.Generator) -> Iterator[Batch]:
        """Users with at least 2 training interactions, in random order.

        Yields `histories` and `targets`, int64 [B, L]: the target of a position is the item that
        came next; and with the loss bce `negatives`, int64 [B, L], one unseen item a position.
        """
        users = random.permutation(np.flatnonzero(train.lengths >= 2))
        unseen = UnseenItems.of_training(train) if self.settings.loss == "bce" else None
        for start in range(0, len(users), self.settings.batch_size):
            chosen = users[start : start + self.settings.batch_size]
            items = train.recent(chosen, self.settings.max_length + 1).astype(np.int64)
            histories, targets = items[:, :-1], items[:, 1:]
            batch = {"histories": histories, "targets": np.where(histories > 0, targets, 0)}
            if unseen is not None:
                rows, columns = np.nonzero(histories)
                batch["negatives"] = np.zeros_like(histories)
                batch["negatives"][rows, columns] = unseen.draw(chosen[rows], random)
            yield {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}

    def loss(self, batch: Batch) -> Tensor:
        """`binary_loss` or `softmax_loss` over the real positions of a batch."""
        packing = pack(batch["histories"] > 0)
        codes = {name: padded.flatten()[packing.place] for name, padded in batch.items()}
        if self.settings.loss == "ce":
            table = self.items.table()
            states = self._packed_states(F.embedding(codes["histories"], table), packing)
            return softmax_loss(states, table, codes["targets"], self.items.candidates)
        # One look-up for all three: each builds a gradient of the whole table.
        inputs, positives, negatives = self.items(
            torch.stack([codes["histories"], codes["targets"], codes["negatives"]])
        )
        return binary_loss(self._packed_states(inputs, packing), positives, negatives)

    def states(self, histories: Tensor) -> Tensor:
        """State after each position, float32 [B, L, d]; zero at padding.

        Args:
            histories: int64 [B, L], L <= max_length, left-padded with 0.
        """
        packing = pack(histories > 0)
        return packing.unpack(self._packed_states(self.items(histories.flatten()[packing.place]), packing))

    def user_states(self, users: Tensor, histories: Tensor) -> Tensor:
        """State after the last item, float32 [B, d]; `users` is not used. Without any history: zero."""
        packing = pack(histories > 0)
        states = self._packed_states(self.items(histories.flatten()[packing.place]), packing, last=True)
        row = packing.place[packing.last] // packing.shape[1]
        return states.new_zeros(len(histories), states.shape[1]).index_copy(0, row, states)

    def state_after(self, representations: Tensor) -> Tensor:
        """See `SequenceRecommender`; the last row of `states` for one user."""
        recent = representations[-self.settings.max_length :]
        if not len(recent):
            return recent.new_zeros(self.settings.hidden_dim)
        packing = pack(torch.ones(1, len(recent), dtype=torch.bool, device=recent.device))
        return self._packed_states(recent, packing, last=True)[0]

    def _packed_states(self, inputs: Tensor, packing: Packing, *, last: bool = False) -> Tensor:
        """float [N, d] item representations -> float [N, d] states, or with `last` those of `packing.last`."""
        # The last column always takes the last position, however long the padding is.
        positions = self.positions[packing.column + len(self.positions) - packing.shape[1]]
        packed = inputs * math.sqrt(self.settings.hidden_dim) + positions
        packed = F.dropout(packed, self.settings.dropout, self.training)
        *lower, top = self.blocks
        for block in lower:
            packed = block(packed, packing)
        normed: Tensor = self.last_norm(top(packed, packing, last=last))
        return normed
