"""Vectors and models that tests of several recommenders start from."""

import numpy as np
import torch

from tests.contracts.recommender import ITEMS, small_vectors

NO_TEXT, NO_VECTOR = 4, 9  # item codes


def raw_vectors(seed=0):
    """Two modalities as a language model gives them; one item lacks its text, one has none."""
    random = np.random.default_rng(seed)
    vectors = {name: random.normal(20, 1, (ITEMS + 1, dim)) for name, dim in (("text", 6), ("image", 5))}
    for matrix in vectors.values():
        matrix[[0, NO_VECTOR]] = 0
    vectors["text"][NO_TEXT] = 0
    return {name: matrix.astype(np.float32) for name, matrix in vectors.items()}


def perturbed(model, scale):
    """The model in float64, its biases and norms away from 0 and 1; padding keeps its zeros."""
    model = model.double()
    for parameter in model.parameters():
        parameter.data += scale * torch.randn_like(parameter)
    if model.items.ids is not None:
        model.items.ids.weight.data[0] = 0
    return model


def variant_of(settings, variant, **changes):
    """Settings and vectors for items that are their ids alone, or that join or replace them by vectors."""
    if variant == "ids":
        return settings.model_copy(update=changes), None
    return settings.model_copy(update={"fusion": variant, **changes}), small_vectors(dim=7)


def left_padded(rows, width):
    """Rows of item codes as one tensor, 0 before the shorter ones."""
    return torch.tensor([[0] * (width - len(row)) + row for row in rows])
