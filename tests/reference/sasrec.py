"""A slow plain twin of SASRec: one user, one position at a time, no padding, no fused operation.

It reads the parameters of the fast model by name and shares no code with it. Dropout is left out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def item_vector(model: nn.Module, code: int) -> Tensor:
    encoder = model.items
    hidden = model.settings.hidden_dim
    vector = torch.zeros(hidden, dtype=model.positions.dtype)
    if encoder.ids is not None:
        vector = vector + encoder.ids.weight[code]
    if encoder.values is not None and bool(encoder.found[code]):
        inner = encoder.down.weight @ encoder.values[code] + encoder.down.bias
        vector = vector + encoder.out.weight @ inner + encoder.out.bias
    return vector


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / torch.sqrt((centred * centred).mean() + 1e-8) * norm.weight + norm.bias


def sequence_states(model: nn.Module, items: list[int]) -> list[Tensor]:
    """State after each of `items`, which are a user's last ones."""
    width, heads = model.settings.hidden_dim, model.settings.heads
    first = len(model.positions) - len(items)
    xs = [
        item_vector(model, code) * math.sqrt(width) + model.positions[first + t]
        for t, code in enumerate(items)
    ]
    for block in model.blocks:
        key_weight, value_weight = block.key_value.weight[:width], block.key_value.weight[width:]
        key_bias, value_bias = block.key_value.bias[:width], block.key_value.bias[width:]
        ys = []
        for t in range(len(xs)):
            normed = layer_norm(block.attention_norm, xs[t])
            query = block.query.weight @ normed + block.query.bias
            mixed = []
            for head in range(heads):
                part = slice(head * width // heads, (head + 1) * width // heads)
                logits = []
                for s in range(t + 1):
                    key = key_weight @ xs[s] + key_bias
                    logits.append((query[part] * key[part]).sum() / math.sqrt(width / heads))
                exponents = [torch.exp(logit) for logit in logits]
                total = sum(exponents)
                values = [(value_weight @ xs[s] + value_bias)[part] for s in range(t + 1)]
                mixed.append(sum(e / total * v for e, v in zip(exponents, values, strict=True)))
            z = layer_norm(block.forward_norm, normed + torch.cat(mixed))
            inner = block.inner.weight @ z + block.inner.bias
            ys.append(z + block.outer.weight @ (inner * (inner > 0)) + block.outer.bias)
        xs = ys
    return [layer_norm(model.last_norm, x) for x in xs]


def loss(model: nn.Module, histories: list[list[int]], targets: list[list[int]], negatives: list[list[int]]):
    """Mean over all positions of all users, by the model's own choice of loss."""
    item_count = (model.items.ids.weight if model.items.ids is not None else model.items.values).shape[0] - 1
    terms = []
    for items, wanted, unwanted in zip(histories, targets, negatives, strict=True):
        for state, positive, negative in zip(sequence_states(model, items), wanted, unwanted, strict=True):
            score = (state * item_vector(model, positive)).sum()
            if model.settings.loss == "bce":
                other = (state * item_vector(model, negative)).sum()
                terms.append(-torch.log(torch.sigmoid(score)) - torch.log(1 - torch.sigmoid(other)))
            else:
                every = [(state * item_vector(model, code)).sum() for code in range(1, item_count + 1)]
                terms.append(torch.log(sum(torch.exp(one) for one in every)) - score)
    return sum(terms) / len(terms)
