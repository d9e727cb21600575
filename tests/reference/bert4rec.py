"""A slow plain twin of BERT4Rec: one user, one position at a time, no padding, no fused operation.

It reads the parameters of the fast model by name and shares no code with it. Dropout is left out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tests.reference.sasrec import item_vector

MASK = None


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / torch.sqrt((centred * centred).mean() + 1e-12) * norm.weight + norm.bias


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def affine(linear: nn.Linear, x: Tensor) -> Tensor:
    return linear.weight @ x + linear.bias


def attend(layer: nn.Module, xs: list[Tensor]) -> list[Tensor]:
    width, heads = len(xs[0]), layer.heads
    projected = [affine(layer.query_key_value, x) for x in xs]
    mixed = []
    for mine in projected:
        of_heads = []
        for head in range(heads):
            size = width // heads
            query, key, value = (
                slice(third * width + head * size, third * width + (head + 1) * size) for third in range(3)
            )
            logits = [(mine[query] * other[key]).sum() / math.sqrt(size) for other in projected]
            exponents = [torch.exp(logit) for logit in logits]
            total = sum(exponents)
            of_heads.append(
                sum(e / total * other[value] for e, other in zip(exponents, projected, strict=True))
            )
        mixed.append(affine(layer.mix, torch.cat(of_heads)))
    return mixed


def sequence_states(model: nn.Module, items: list[int | None]) -> list[Tensor]:
    """What ranks the catalogue at each position; `MASK` stands for a masked item."""
    first = len(model.positions) - len(items)
    xs = []
    for t, code in enumerate(items):
        x = model.mask if code is MASK else item_vector(model, code)
        xs.append(layer_norm(model.input_norm, x + model.positions[first + t]))
    for layer in model.layers:
        middle = [layer_norm(layer.attention_norm, x + y) for x, y in zip(xs, attend(layer, xs), strict=True)]
        xs = [
            layer_norm(layer.forward_norm, z + affine(layer.outer, gelu(affine(layer.inner, z))))
            for z in middle
        ]
    return [layer_norm(model.head_norm, gelu(affine(model.head, x))) for x in xs]


def loss(model: nn.Module, histories: list[list[int]], masked: list[list[bool]]) -> Tensor:
    """Mean over all masked positions of all users."""
    item_count = (model.items.ids.weight if model.items.ids is not None else model.items.values).shape[0] - 1
    terms = []
    for items, hidden in zip(histories, masked, strict=True):
        seen = [MASK if h else code for code, h in zip(items, hidden, strict=True)]
        for state, target, h in zip(sequence_states(model, seen), items, hidden, strict=True):
            if h:
                every = [(state * item_vector(model, code)).sum() for code in range(1, item_count + 1)]
                terms.append(torch.log(sum(torch.exp(one) for one in every)) - every[target - 1])
    return sum(terms) / len(terms)
