"""What a user took last as a query for the catalogue, beside what a recommender learned.

    score = model's score + w cos(m_u, v_i),   m_u = sum_a decay^a v_a, a = 0 for the user's last item

v are an item's vectors, each modality centred and at unit norm, side by side. Nothing here is trained, so
an item that nobody took yet is ranked like any other; where most items have one or two interactions, it is
most of what can be known. w is chosen on the validation users. The sum is one product again, of two factors
with more columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sda_features.config import EvaluationSettings, VectorEvaluationSettings
from sda_features.evaluation.metrics import ndcg_at_k, ranks_of_targets
from sda_features.evaluation.protocols import SCORES_AT_ONCE, Scorer, without_seen
from sda_features.logs.interactions import Interactions
from sda_features.logs.splits import Split
from sda_features.recommenders.base import USERS_AT_ONCE, Ranker
from sda_features.recommenders.representations import ItemVectors

MEASURED_AS = VectorEvaluationSettings()  # a history is read as `evaluate-vectors` reads it
RECENT, DECAY = MEASURED_AS.history, MEASURED_AS.decay  # items, at most the model's `max_length`
RELATIVE_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # tried, in spreads of the model's scores
SPREAD_OF = 256  # users whose scores tell the spreads


def content_units(values: Tensor, widths: Sequence[int]) -> Tensor:
    """Unit vectors of items, modalities side by side, float32 [n, D].

    Args:
        values: float32 [n, D], standardised (`join_modalities`); zero where a modality is missing.
        widths: of the modalities; their sum is D.
    """
    blocks = torch.split(values, list(widths), dim=1)
    return F.normalize(torch.cat([F.normalize(block, dim=1) for block in blocks], dim=1), dim=1)


def content_state(recent: Tensor) -> Tensor:
    """m_u at unit norm, float32 [..., D], from unit vectors [..., L, D], the latest last; zero without any."""
    recent = recent[..., -RECENT:, :]
    decays = DECAY ** torch.arange(recent.shape[-2] - 1, -1, -1, device=recent.device)
    return F.normalize((decays[:, None] * recent).sum(dim=-2), dim=-1)


@final
class WithContent(Ranker):
    """A trained recommender and the content score; see the module's docstring.

    Args:
        model: the recommender.
        vectors: of all items.
        weight: w.
    """

    units: Tensor

    def __init__(self, model: Ranker, vectors: ItemVectors, weight: float) -> None:
        super().__init__(model.settings)
        self.model = model
        self.weight = weight
        widths = [block["dim"] for block in vectors.blocks.values()]
        units = content_units(torch.from_numpy(vectors.values), widths)
        self.register_buffer("units", units.to(model.device), persistent=False)

    def user_states(self, users: Tensor, histories: Tensor) -> Tensor:
        """The recommender's, then w m_u: float32 [B, K + D]."""
        content = content_state(self.units[histories[:, -self.settings.max_length :].to(self.device)])
        return torch.cat([self.model.user_states(users, histories), self.weight * content], dim=1)

    def item_table(self) -> Tensor:
        """The recommender's, then v: float32 [I + 1, K + D]."""
        return torch.cat([self.model.item_table(), self.units], dim=1)

    def _states(self, history: Interactions, users: NDArray[np.int64], batch: int | None = None) -> Tensor:
        own = self.model._states(history, users, batch)
        return torch.cat([own, self.weight * self._content(history, users)], dim=1)

    def content_scorer(self, history: Interactions) -> Scorer:
        """cos(m_u, v_i) alone."""
        table = self.units.T.contiguous()

        def score(users: NDArray[np.int64]) -> NDArray[np.float32]:
            with torch.inference_mode():
                scores: NDArray[np.float32] = (self._content(history, users) @ table).cpu().numpy()
            return scores

        return score

    def _content(self, history: Interactions, users: NDArray[np.int64]) -> Tensor:
        length = min(RECENT, self.settings.max_length)
        recent = torch.from_numpy(history.recent(users, length)).long().to(self.units.device)
        return torch.cat([content_state(self.units[some]) for some in torch.split(recent, USERS_AT_ONCE)])


def choose_weight(model: Ranker, vectors: ItemVectors, split: Split, evaluation: EvaluationSettings) -> float:
    """w with the best `ndcg@k/full/all` of the validation; the smaller of two that are equally good.

    Tried are `RELATIVE_WEIGHTS` times the spread of the model's scores over that of the cosines, both
    standard deviations over the catalogue, mean of some validation users.
    """
    held = split.validation
    content = WithContent(model, vectors, 0.0).content_scorer(held.history)
    learned = model.scorer(held.history, held.users)
    spreads = [score(held.users[:SPREAD_OF])[:, 1:].std(axis=1).mean() for score in (learned, content)]
    weights = np.array(RELATIVE_WEIGHTS, np.float32) * np.float32(spreads[0] / max(spreads[1], 1e-12))
    ranks: list[list[NDArray[np.float64]]] = [[] for _ in weights]
    rows = max(1, SCORES_AT_ONCE // (split.train.item_count + 1))
    for start in range(0, len(held.users), rows):  # both scores once, for all weights
        users, targets = held.users[start : start + rows], held.targets[start : start + rows]
        own, cosine = learned(users), content(users)
        for weight, of_weight in zip(weights, ranks, strict=True):
            scores = without_seen(own + weight * cosine, held.history, users, targets)
            of_weight.append(ranks_of_targets(scores, targets))
    ndcg = [ndcg_at_k(np.concatenate(of_weight), evaluation.cutoff).mean() for of_weight in ranks]
    return float(weights[int(np.argmax(ndcg))])
