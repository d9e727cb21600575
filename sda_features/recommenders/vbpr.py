"""VBPR: visual Bayesian personalised ranking (He and McAuley 2016), over the vectors of any modality.

    x_ui = b_i + g_u . g_i + t_u . (E f_i) + B' . f_i        (paper, Eq. 4)

where f_i are the item's vectors side by side; alpha and b_u of Eq. 4 cancel in every ranking and
are left out. Without vectors it is BPR-MF, b_i + g_u . g_i (Rendle et al. 2009). With
`fusion="replace"` no parameter belongs to an item: t_u . (E f_i) + B' . f_i.

E maps f_i to `hidden_dim` directly, as in the paper, not through the adapter of the sequence
models. The optimiser is that of `train`, Adam on mini-batches, where the paper steps by SGD.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sda_features.config import RecommenderSettings
from sda_features.evaluation.negatives import UnseenItems
from sda_features.logs.interactions import Interactions
from sda_features.recommenders.base import Batch, Recommender
from sda_features.recommenders.representations import ItemVectors, drop_ids, rows_with_ids


def bpr_loss(margins: Tensor) -> Tensor:
    """-mean ln sigmoid(x_ui - x_uj) (paper, Eq. 6, without its penalty); margins float [B]."""
    return F.softplus(-margins).mean()


@final
class VBPR(Recommender):
    """See the module's docstring.

    Columns of `user_factors` are g_u, then t_u; of `item_factors` g_i, then b_i; rows of
    `projection` are those of E, then B'. What the variant does not use is absent.
    """

    values: Tensor | None

    def __init__(
        self,
        user_count: int,
        item_count: int,
        settings: RecommenderSettings,
        vectors: ItemVectors | None,
        trained: NDArray[np.bool_] | None = None,
    ) -> None:
        super().__init__(settings)
        hidden = settings.hidden_dim
        self.item_factors: nn.Parameter | None = None
        self.projection: nn.Parameter | None = None
        self.register_buffer("values", None, persistent=False)
        width = 0
        if vectors is None or settings.fusion == "join":
            self.item_factors = nn.Parameter(_initial(item_count + 1, hidden + 1))
            with torch.no_grad():
                self.item_factors[:, -1] = 0
                self.item_factors.mul_(rows_with_ids(item_count, trained))
            width += hidden
        if vectors is not None:
            self.values = torch.from_numpy(vectors.values)
            self.projection = nn.Parameter(_initial(hidden + 1, vectors.values.shape[1]))
            width += hidden
        self.user_factors = nn.Parameter(_initial(user_count, width))

    @classmethod
    def build(cls, train: Interactions, settings: RecommenderSettings, vectors: ItemVectors | None) -> Self:
        """A fresh model for the users and items of `train`."""
        return cls(train.user_count, train.item_count, settings, vectors, train.item_counts > 0)

    def batches(self, train: Interactions, random: np.random.Generator) -> Iterator[Batch]:
        """Every training interaction once, in random order.

        Yields `users`, `positives` and `negatives`, int64 [B] with B = `batch_size`; a negative is
        uniform over what its user did not take in training.
        """
        # Drawn in the order of the log, where neighbours share their user and the search is local.
        drawn = UnseenItems.of_training(train).draw(train.users, random)
        order = random.permutation(len(train.items))
        users, positives, negatives = (
            torch.from_numpy(column[order].astype(np.int64)) for column in (train.users, train.items, drawn)
        )
        for start in range(0, len(order), self.settings.batch_size):
            batch = slice(start, start + self.settings.batch_size)
            yield {"users": users[batch], "positives": positives[batch], "negatives": negatives[batch]}

    def loss(self, batch: Batch) -> Tensor:
        """`bpr_loss` plus the penalty of Eq. 6: `l2` times the mean squared norm of what a triple reads.

        An item's row of the table is linear in g_i, b_i and f_i, so the difference of two rows is
        the row of the differences, and E is applied once a triple.
        """
        pairs = torch.stack([batch["positives"], batch["negatives"]], dim=1)
        users = F.embedding(batch["users"], self.user_factors)
        penalty = users.square().sum() / len(users)
        factors = values = None
        if self.item_factors is not None:
            both = F.embedding(pairs, self.item_factors)
            if self.training and self.values is not None and self.settings.id_dropout:
                found = self.values[pairs].any(dim=2).flatten()[:, None]
                both = drop_ids(both.flatten(0, 1), self.settings.id_dropout, found).view_as(both)
            factors = both[:, 0] - both[:, 1]
            penalty = penalty + both.square().sum() / len(users)
        if self.values is not None and self.projection is not None:
            signs = self.values.new_tensor([1.0, -1.0]).expand(len(pairs), 2)
            values = F.embedding_bag(pairs, self.values, per_sample_weights=signs, mode="sum")
            penalty = penalty + self.projection.square().sum()
        rows = self._rows(factors, values)
        margins = (users * rows[:, :-1]).sum(dim=1) + rows[:, -1]
        return bpr_loss(margins) + self.settings.l2 * penalty

    def adapter_parameters(self) -> list[nn.Parameter]:
        """E and B'."""
        return [] if self.projection is None else [self.projection]

    def user_states(self, users: Tensor, histories: Tensor) -> Tensor:
        """g_u, t_u and 1, float32 [B, K]; `histories` is not used."""
        return F.pad(self.user_factors[users], (0, 1), value=1.0)

    def item_table(self) -> Tensor:
        """g_i, E f_i and b_i + B' . f_i, float32 [I + 1, K]."""
        return self._rows(self.item_factors, self.values)

    def _rows(self, factors: Tensor | None, values: Tensor | None) -> Tensor:
        """float32 [n, K] from g_i and b_i, [n, hidden + 1], and f_i, [n, D]."""
        parts = [] if factors is None else [factors]
        if values is not None and self.projection is not None:
            parts.append(values @ self.projection.T)
        bias = torch.stack([part[:, -1] for part in parts]).sum(dim=0)
        return torch.cat([*(part[:, :-1] for part in parts), bias[:, None]], dim=1)


def _initial(rows: int, columns: int) -> Tensor:
    return nn.init.xavier_normal_(torch.empty(rows, columns))
