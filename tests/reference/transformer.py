"""What the slow plain twins of sequence models share: one position, one head, one item at a time.

They read the parameters of the fast models by name and share no code with them. Dropout is left out.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def item_vector(model: nn.Module, code: int) -> Tensor:
    encoder = model.items
    vector = torch.zeros(model.settings.hidden_dim, dtype=model.positions.dtype)
    if encoder.ids is not None:
        vector = vector + encoder.ids.weight[code]
    if encoder.values is not None and bool(encoder.found[code]):
        vector = vector + affine(encoder.out, affine(encoder.down, encoder.values[code]))
    return vector


def affine(linear: nn.Linear, x: Tensor) -> Tensor:
    return linear.weight @ x + linear.bias


def layer_norm(norm: nn.LayerNorm, x: Tensor, epsilon: float) -> Tensor:
    centred = x - x.mean()
    return centred / torch.sqrt((centred * centred).mean() + epsilon) * norm.weight + norm.bias


def attend(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], heads: int) -> Tensor:
    """What one position takes from others, all [d]."""
    size = len(query) // heads
    mixed = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        exponents = [torch.exp((query[part] * key[part]).sum() / math.sqrt(size)) for key in keys]
        total = sum(exponents)
        mixed.append(sum(e / total * value[part] for e, value in zip(exponents, values, strict=True)))
    return torch.cat(mixed)


def cross_entropy(model: nn.Module, state: Tensor, target: int) -> Tensor:
    """Of the softmax over the catalogue."""
    table = model.items.ids.weight if model.items.ids is not None else model.items.values
    scores = [(state * item_vector(model, code)).sum() for code in range(1, len(table))]
    return torch.log(sum(torch.exp(score) for score in scores)) - scores[target - 1]
