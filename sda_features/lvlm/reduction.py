"""Smaller vectors: a rotation that is fitted once, stored in the checkpoint and cut where the user likes.

The first k columns R_k of the rotation span the directions in which text and image vectors of the
training items are longest, so among all k-dimensional subspaces theirs keeps dot products best
(Eckart and Young 1936, on the matrix of vectors as it is: nothing is centred, so that 0 stays 0).
Both modalities share it: their vectors stay comparable. A transform fitted anew for each run would
put later items into another space than earlier ones.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sda_features.errors import SettingsError

SAMPLE = 2048  # items whose vectors the rotation is fitted on
MOST = 1024  # columns that are stored


def fit_rotation(vectors: NDArray[np.float32]) -> tuple[Tensor, list[float]]:
    """The rotation of a sample of vectors, float32 [n, d].

    Returns:
        rotation: float32 [d, min(d, `MOST`)] with orthonormal columns, most important first.
        kept: share of the vectors' squared length in the first k columns, for k = 1, 2, ...
    """
    sample = torch.from_numpy(vectors).double()
    lengths, rotation = torch.linalg.eigh(sample.T @ sample)  # ascending
    lengths, rotation = lengths.flip(0).clamp(min=0), rotation.flip(1)
    largest = rotation.abs().argmax(dim=0)
    rotation = rotation * rotation[largest, torch.arange(len(largest))].sign()  # eigenvectors have no sign
    kept: list[float] = (lengths.cumsum(0) / lengths.sum().clamp(min=1e-30)).tolist()
    return rotation[:, :MOST].float().contiguous(), kept[:MOST]


def reduce_vectors(vectors: Tensor, rotation: Tensor, dim: int) -> Tensor:
    """v R_k: the first `dim` coordinates of rotated vectors, [B, d] -> [B, dim].

    Raises:
        SettingsError: the rotation has fewer columns.
    """
    if not 0 < dim <= rotation.shape[1]:
        raise SettingsError(
            f"Expected --dim from 1 to {rotation.shape[1]}, which is as far as the checkpoint's rotation goes; "
            f"got {dim}."
        )
    return vectors @ rotation[:, :dim].to(vectors)
