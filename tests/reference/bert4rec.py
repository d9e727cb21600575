"""A slow plain twin of BERT4Rec: one user, one position at a time, no padding, no fused operation."""

import math
from functools import partial

import torch
from torch import Tensor, nn

from tests.reference import transformer
from tests.reference.transformer import affine, attend, cross_entropy, item_vector

MASK = None
layer_norm = partial(transformer.layer_norm, epsilon=1e-12)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def sequence_states(model: nn.Module, items: list[int | None]) -> list[Tensor]:
    """What ranks the catalogue at each position; `MASK` stands for a masked item."""
    first = len(model.positions) - len(items)
    xs = []
    for t, code in enumerate(items):
        x = model.mask if code is MASK else item_vector(model, code)
        xs.append(layer_norm(model.input_norm, x + model.positions[first + t]))
    for layer in model.layers:
        projected = [affine(layer.query_key_value, x).chunk(3) for x in xs]
        queries, keys, values = zip(*projected, strict=True)
        ys = []
        for x, query in zip(xs, queries, strict=True):
            y = affine(layer.mix, attend(query, keys, values, layer.heads))
            z = layer_norm(layer.attention_norm, x + y)
            ys.append(layer_norm(layer.forward_norm, z + affine(layer.outer, gelu(affine(layer.inner, z)))))
        xs = ys
    return [layer_norm(model.head_norm, gelu(affine(model.head, x))) for x in xs]


def loss(model: nn.Module, histories: list[list[int]], masked: list[list[bool]]) -> Tensor:
    """Mean over all masked positions of all users."""
    terms = []
    for items, hidden in zip(histories, masked, strict=True):
        seen = [MASK if h else code for code, h in zip(items, hidden, strict=True)]
        for state, target, h in zip(sequence_states(model, seen), items, hidden, strict=True):
            if h:
                terms.append(cross_entropy(model, state, target))
    return sum(terms) / len(terms)
