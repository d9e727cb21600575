"""What held-out items say of a run in training, and vectors of training items after it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor, nn

from sda_features.config import AdaptSettings
from sda_features.evaluation.neighbours import kept_share, nearest, side_by_side, unit_rows
from sda_features.evaluation.retrieval import recall_at_k
from sda_features.lvlm.backbone import PromptBatch
from sda_features.lvlm.encoder import PromptEncoder
from sda_features.lvlm.processes import Processes
from sda_features.lvlm.reduction import SAMPLE
from sda_features.lvlm.training_data import Indices, TrainingPairs
from sda_features.lvlm.training_state import TrainingState

Vectors = NDArray[np.float32]
Places = NDArray[np.integer[Any]]
NEAREST = 10  # neighbours that are compared
LEAST_PAIRS = 100  # held-out pairs below which a log says too little


@final
class Validation:
    """Measures the held-out items and remembers the best weights.

    - `recall@1`, `recall@10`: a text finds its own picture.
    - `neighbours@10`: of an item's ten nearest by the base model, the share that is still there, mean of
      text and picture. Or, where a log gives enough pairs, the share of the items that customers took
      together with it among its ten nearest by text and picture side by side.

    Training for the first alone loses what only one modality knows, so the weights that are kept are
    those with the best `settings.train.validate_on`.

    Args:
        encoder: in training; asked without dropout.
        indices: positions of the held-out items [n]; none: nothing is measured.
        processes: the main process's measure counts in all: each rounds its own way, and all must stop at
            one step.
        together: bool [N, N] over all positions, pairs of the log among `indices`; None without a log.
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        pairs: TrainingPairs,
        indices: Indices,
        settings: AdaptSettings,
        processes: Processes,
        together: csr_array | None = None,
    ):
        self._encoder, self._pairs, self._indices = encoder, pairs, indices
        self._settings, self._processes = settings, processes
        self._together: tuple[Places, Places] | None = None
        if together is not None:
            rows, columns = together[indices][:, indices].nonzero()
            if len(rows) >= LEAST_PAIRS:
                self._together = rows, columns
        self._before = None
        if len(indices) and self._together is None:
            self._before = [_neighbours(unit_rows(half)) for half in self._encode(encoder.unadapted)]

    def __len__(self) -> int:
        """n."""
        return len(self._indices)

    def measure(self) -> dict[str, float]:
        """The measures of the encoder as it is now."""
        text, image = self._encode(self._encoder)
        found = {f"recall@{k}": recall_at_k(text, image, k) or 0.0 for k in (1, 10)}
        if self._together is not None:
            kept = cooccurrence_recall(text, image, *self._together)
        else:
            assert self._before is not None
            shares = [
                kept_share(before, _neighbours(unit_rows(after))) or 0.0
                for before, after in zip(self._before, (text, image), strict=True)
            ]
            kept = sum(shares) / len(shares)
        return self._processes.broadcast(found | {f"neighbours@{NEAREST}": kept})

    def update(self, standing: TrainingState, weights: dict[str, nn.Parameter]) -> dict[str, float]:
        """Measure, and remember the weights if they are the best so far."""
        measured = self.measure()
        aligned, kept = measured["recall@10"], measured[f"neighbours@{NEAREST}"]
        both = math.sqrt(aligned * kept)  # either is worth nothing without the other
        scores = {"alignment": aligned, "neighbours": kept, "both": both}
        score = scores[self._settings.train.validate_on]
        if score > standing.best_score:
            standing.best_score, standing.best_step, standing.stale = score, standing.step, 0
            standing.best_weights = {name: value.detach().cpu().clone() for name, value in weights.items()}
        else:
            standing.stale += 1
        return measured

    def _encode(self, encode: Callable[[PromptBatch], Tensor]) -> list[Vectors]:
        return np.split(encode_pairs(self._encoder, self._pairs, self._indices, self._settings, encode), 2)


def cooccurrence_recall(text: Vectors, image: Vectors, rows: Places, columns: Places) -> float:
    """Share of pairs whose second item is among the ten nearest of the first, by text and picture side by side.

    Vectors float32 [n, d], not normalised, and the pairs' positions among them, int [m] each.
    """
    near = _neighbours(side_by_side(text, image))
    return float((near[rows] == columns[:, None]).any(axis=1).mean())


def _neighbours(units: Vectors) -> NDArray[np.int32]:
    return nearest(units, units, NEAREST, own=range(len(units)))


def sample_vectors(
    encoder: PromptEncoder, pairs: TrainingPairs, indices: Indices, settings: AdaptSettings
) -> Vectors:
    """Vectors of both modalities of at most `SAMPLE` of the items at `indices`, evenly spaced."""
    chosen = indices[:: math.ceil(len(indices) / SAMPLE)]
    vectors = encode_pairs(encoder, pairs, chosen, settings, encoder)
    return unit_rows(vectors, centre=False) if settings.loss.normalize else vectors


def encode_pairs(
    encoder: PromptEncoder,
    pairs: TrainingPairs,
    indices: Indices,
    settings: AdaptSettings,
    encode: Callable[[PromptBatch], Tensor],
) -> Vectors:
    """Vectors of the items at `indices`, without dropout: float32 [2 n, d], all texts, then all pictures."""
    micro = settings.train.items_at_once
    batches = pairs.micro_batches(indices, encoder.backbone, settings.prompts, micro)
    with torch.no_grad(), encoder.without_dropout():
        return torch.cat([encode(batch).cpu() for batch in batches]).numpy()
