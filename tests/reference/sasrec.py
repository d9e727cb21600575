"""A slow plain twin of SASRec: one user, one position at a time, no padding, no fused operation."""

import math
from functools import partial

import torch
from torch import Tensor, nn

from tests.reference import transformer
from tests.reference.transformer import affine, attend, cross_entropy, item_vector

layer_norm = partial(transformer.layer_norm, epsilon=1e-8)


def sequence_states(model: nn.Module, items: list[int]) -> list[Tensor]:
    """State after each of `items`, which are a user's last ones."""
    settings, first = model.settings, len(model.positions) - len(items)
    xs = [
        item_vector(model, code) * math.sqrt(settings.hidden_dim) + model.positions[first + t]
        for t, code in enumerate(items)
    ]
    for block in model.blocks:
        keys, values = zip(*(affine(block.key_value, x).chunk(2) for x in xs), strict=True)
        ys = []
        for t, x in enumerate(xs):
            normed = layer_norm(block.attention_norm, x)
            query = affine(block.query, normed)
            mixed = attend(query, keys[: t + 1], values[: t + 1], settings.heads)
            z = layer_norm(block.forward_norm, normed + mixed)
            inner = affine(block.inner, z)
            ys.append(z + affine(block.outer, inner * (inner > 0)))
        xs = ys
    return [layer_norm(model.last_norm, x) for x in xs]


def loss(model: nn.Module, histories: list[list[int]], targets: list[list[int]], negatives: list[list[int]]):
    """Mean over all positions of all users, by the model's own choice of loss."""
    terms = []
    for items, wanted, unwanted in zip(histories, targets, negatives, strict=True):
        for state, positive, negative in zip(sequence_states(model, items), wanted, unwanted, strict=True):
            if model.settings.loss == "bce":
                score = (state * item_vector(model, positive)).sum()
                other = (state * item_vector(model, negative)).sum()
                terms.append(-torch.log(torch.sigmoid(score)) - torch.log(1 - torch.sigmoid(other)))
            else:
                terms.append(cross_entropy(model, state, positive))
    return sum(terms) / len(terms)
