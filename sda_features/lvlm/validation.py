"""Held-out retrieval during training, and vectors of training items after it."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sda_features.config import AdaptSettings
from sda_features.evaluation.retrieval import recall_at_k
from sda_features.lvlm.encoder import PromptEncoder
from sda_features.lvlm.processes import Processes
from sda_features.lvlm.reduction import SAMPLE
from sda_features.lvlm.training_data import Indices, TrainingPairs
from sda_features.lvlm.training_state import Standing

Vectors = NDArray[np.float32]


def validate(
    encoder: PromptEncoder,
    pairs: TrainingPairs,
    indices: Indices,
    settings: AdaptSettings,
    standing: Standing,
    weights: dict[str, nn.Parameter],
    processes: Processes,
) -> dict[str, float]:
    """Measure held-out retrieval and remember the weights if R@10 is the best so far.

    The main process's measure counts in all: each rounds its own way, and all must stop at one step.
    """
    recall = processes.agreed(measure_recall(encoder, pairs, indices, settings))
    if recall["recall@10"] > standing.best_recall:
        standing.best_recall, standing.best_step, standing.stale = recall["recall@10"], standing.step, 0
        standing.best_weights = {name: value.detach().cpu().clone() for name, value in weights.items()}
    else:
        standing.stale += 1
    return recall


def measure_recall(
    encoder: PromptEncoder, pairs: TrainingPairs, indices: Indices, settings: AdaptSettings
) -> dict[str, float]:
    """Text-to-image R@1 and R@10 among the items at `indices`."""
    text, image = np.split(encode_pairs(encoder, pairs, indices, settings), 2)
    return {f"recall@{k}": recall_at_k(text, image, k) or 0.0 for k in (1, 10)}


def sample_vectors(
    encoder: PromptEncoder, pairs: TrainingPairs, indices: Indices, settings: AdaptSettings
) -> Vectors:
    """Vectors of both modalities of at most `SAMPLE` of the items at `indices`, evenly spaced."""
    chosen = indices[:: math.ceil(len(indices) / SAMPLE)]
    vectors = encode_pairs(encoder, pairs, chosen, settings)
    if settings.loss.normalize:
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors


def encode_pairs(
    encoder: PromptEncoder, pairs: TrainingPairs, indices: Indices, settings: AdaptSettings
) -> Vectors:
    """Vectors of the items at `indices`, without dropout: float32 [2 n, d], all texts, then all pictures."""
    micro = settings.train.items_at_once
    batches = pairs.micro_batches(indices, encoder.backbone, settings.prompts, micro)
    with torch.no_grad(), encoder.without_dropout():
        return torch.cat([encoder(batch).cpu() for batch in batches]).numpy()
