"""BERT4Rec: sequential recommendation with bidirectional self-attention (Sun et al. 2019).

Trained by the Cloze task: a share of each sequence is replaced by [MASK] and predicted from both
sides. To recommend, [MASK] is appended to the history and its state ranks the catalogue.

The layout is that of the authors' code, which adds to the paper's text a norm after the embeddings
and one in the head. Deviations from it:

- Positions count from the end of the sequence, so that [MASK] always stands at the last one.
- No bias b^O of an item (Eq. 7): a score is a product with the item's representation, which an item
  that came after the training has too.
- A long history gives one window at random in each pass, in place of all windows of a fixed step.
- The optimiser is that of `train`: Adam without weight decay or warm-up; the authors' linear decay is
  the setting `schedule`.

Layers run on the real positions only (`packing`), the last feed-forward layer and the softmax on
those that are predicted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sda_features.config import RecommenderSettings
from sda_features.errors import SettingsError
from sda_features.logs.interactions import Interactions
from sda_features.recommenders.base import Batch, SequenceRecommender
from sda_features.recommenders.packing import Packing, attention, pack
from sda_features.recommenders.representations import ItemEncoder, ItemVectors
from sda_features.recommenders.softmax import softmax_loss

LAYER_NORM_EPSILON = 1e-12
INITIAL_SPREAD = 0.02  # standard deviation, cut at twice that
LAST_ALONE = 1 / 11  # ten Cloze samples of a sequence, then one with the last item masked
LARGEST_ATTENTION_DROPOUT = 0.2  # on sparse and on dense data, where the other rate is 0.5 and 0.2


def cloze_mask(real: NDArray[np.bool_], ratio: float, random: np.random.Generator) -> NDArray[np.bool_]:
    """Which positions are predicted (paper, section 3.6).

    Of n real positions max(1, round(ratio n)) at random; in a share `LAST_ALONE` of the sequences,
    drawn at random too, the last position alone, which is the task at recommendation time.

    Args:
        real: bool [B, L], False at padding; the last column is real.
        ratio: the paper's rho, in 0..1.
        random: draws both.

    Returns:
        bool [B, L], True only where `real`.
    """
    wanted = np.maximum(1, np.rint(ratio * real.sum(axis=1)))
    keys = np.where(real, random.random(real.shape), 2.0)
    masked: NDArray[np.bool_] = keys.argsort(axis=1).argsort(axis=1) < wanted[:, None]
    last_alone = random.random(len(real)) < LAST_ALONE
    masked[last_alone] = np.arange(real.shape[1]) == real.shape[1] - 1
    return masked


@final
class Layer(nn.Module):
    """Transformer layer with the norm after each residual (paper, Eq. 1-6).

    a = LN(h + Dropout(MH(h))); Trm(h) = LN(a + Dropout(FFN(a))), FFN(x) = GELU(x W_1 + b_1) W_2 + b_2.
    """

    def __init__(self, settings: RecommenderSettings) -> None:
        super().__init__()
        width = settings.hidden_dim
        self.heads, self.rate = settings.heads, settings.dropout
        self.attention_rate = min(settings.dropout, LARGEST_ATTENTION_DROPOUT)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.inner = nn.Linear(width, settings.inner_dim)
        self.outer = nn.Linear(settings.inner_dim, width)
        self.forward_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)

    def forward(
        self, packed: Tensor, packing: Packing, wanted: Tensor | None = None, *, last: bool = False
    ) -> Tensor:
        """float [N, d], rows as in `packing` -> float [N, d]; or of it the rows `wanted` (int64 [M]).

        With `last` these are `packing.last`, and no other position attends.
        """
        query, key, value = self.query_key_value(packed).chunk(3, dim=1)
        if last:
            query, packed, wanted = query[packing.last], packed[packing.last], None
        rate = self.attention_rate if self.training else 0.0
        attended = attention(
            query, key, value, packing, heads=self.heads, causal=False, dropout=rate, last=last
        )
        if wanted is not None:
            packed, attended = packed[wanted], attended[wanted]
        mixed = F.dropout(self.mix(attended), self.rate, self.training)
        middle = self.attention_norm(packed + mixed)
        fed = F.dropout(self.outer(F.gelu(self.inner(middle))), self.rate, self.training)
        output: Tensor = self.forward_norm(middle + fed)
        return output


@final
class BERT4Rec(SequenceRecommender):
    """See the module's docstring. Item representations serve as input and as output."""

    def __init__(
        self,
        item_count: int,
        settings: RecommenderSettings,
        vectors: ItemVectors | None,
        trained: NDArray[np.bool_] | None = None,
    ) -> None:
        super().__init__(settings)
        width = settings.hidden_dim
        if width % settings.heads:
            raise SettingsError(f"hidden_dim {width} does not split over {settings.heads} heads.")
        self.items = ItemEncoder(item_count, settings, vectors, trained)
        self.mask = nn.Parameter(torch.empty(width))
        self.positions = nn.Parameter(torch.empty(settings.max_length + 1, width))
        self.input_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.layers = nn.ModuleList(Layer(settings) for _ in range(settings.blocks))
        self.head = nn.Linear(width, width)
        self.head_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        for parameter in (self.mask, self.positions):
            _initialise(parameter)
        for module in (self.head, *self.layers.modules()):
            if isinstance(module, nn.Linear):
                _initialise(module.weight)
                nn.init.zeros_(module.bias)

    @classmethod
    def build(cls, train: Interactions, settings: RecommenderSettings, vectors: ItemVectors | None) -> Self:
        """A fresh model for the items of `train`."""
        return cls(train.item_count, settings, vectors, train.item_counts > 0)

    def batches(self, train: Interactions, random: np.random.Generator) -> Iterator[Batch]:
        """Users with at least 2 training interactions, in random order, masked anew in each pass.

        Of a longer history each pass takes one window of `max_length + 1` items at random.

        Yields `histories`, int64 [B, L], and `masked`, bool [B, L].
        """
        users = random.permutation(np.flatnonzero(train.lengths >= 2))
        length = self.settings.max_length + 1
        windows = train.without_last(random.integers(0, np.maximum(train.lengths - length, 0) + 1))
        for start in range(0, len(users), self.settings.batch_size):
            chosen = users[start : start + self.settings.batch_size]
            histories = windows.recent(chosen, length).astype(np.int64)
            masked = cloze_mask(histories > 0, self.settings.mask_ratio, random)
            yield {"histories": torch.from_numpy(histories), "masked": torch.from_numpy(masked)}

    def loss(self, batch: Batch) -> Tensor:
        """Negative log-likelihood of the masked items (paper, Eq. 8), mean over those of the batch."""
        packing = pack(batch["histories"] > 0)
        codes, masked = (batch[name].flatten()[packing.place] for name in ("histories", "masked"))
        table = self.items.table()
        inputs = torch.where(masked[:, None], self.mask, F.embedding(codes, table))
        wanted = masked.nonzero().squeeze(1)
        states = self._packed_states(inputs, packing, wanted)
        return softmax_loss(states, table, codes[wanted], self.items.candidates)

    def user_states(self, users: Tensor, histories: Tensor) -> Tensor:
        """State of a [MASK] after the last item, float32 [B, d]; `users` is not used.

        Without any history: zero.
        """
        histories = F.pad(histories[:, -self.settings.max_length :], (0, 1))
        real = histories > 0
        known = real.any(dim=1)
        real[:, -1] = True
        packing = pack(real)
        inputs = self.items(histories.flatten()[packing.place]).index_copy(
            0, packing.last, self.mask.expand(len(packing.last), -1)
        )
        states = self._packed_states(inputs, packing, last=True)
        row = packing.place[packing.last] // real.shape[1]
        return states[row.argsort()] * known[:, None]

    def state_after(self, representations: Tensor) -> Tensor:
        """See `SequenceRecommender`; `user_states` for one user."""
        recent = representations[-self.settings.max_length :]
        if not len(recent):
            return recent.new_zeros(self.settings.hidden_dim)
        packing = pack(torch.ones(1, len(recent) + 1, dtype=torch.bool, device=recent.device))
        return self._packed_states(torch.cat([recent, self.mask[None]]), packing, last=True)[0]

    def _packed_states(
        self, inputs: Tensor, packing: Packing, wanted: Tensor | None = None, *, last: bool = False
    ) -> Tensor:
        """LN(GELU(h W^P + b^P)) (paper, Eq. 7, left of E^T), float [M, d].

        Of `inputs`, float [N, d], the rows `wanted`, int64 [M], or with `last` those of `packing.last`.
        """
        # The last column always takes the last position, however long the padding is.
        positions = self.positions[packing.column + len(self.positions) - packing.shape[1]]
        packed = F.dropout(self.input_norm(inputs + positions), self.settings.dropout, self.training)
        *lower, top = self.layers
        for layer in lower:
            packed = layer(packed, packing)
        states: Tensor = self.head_norm(F.gelu(self.head(top(packed, packing, wanted, last=last))))
        return states


def _initialise(parameter: Any) -> None:
    nn.init.trunc_normal_(parameter, std=INITIAL_SPREAD, a=-2 * INITIAL_SPREAD, b=2 * INITIAL_SPREAD)
