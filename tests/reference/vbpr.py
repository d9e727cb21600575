"""A slow plain twin of VBPR: one user, one item, one triple at a time, each term of the score by itself.

It reads the parameters of the fast model by name and shares no code with it.
"""

import torch
from torch import Tensor, nn


def score(model: nn.Module, user: int, item: int) -> Tensor:
    """b_i + g_u . g_i + t_u . (E f_i) + B' . f_i, without what the variant does not have."""
    hidden = model.settings.hidden_dim
    of_user, total = model.user_factors[user], torch.zeros((), dtype=model.user_factors.dtype)
    if model.item_factors is not None:
        latent, bias = model.item_factors[item][:hidden], model.item_factors[item][hidden]
        total = total + bias + sum(of_user[k] * latent[k] for k in range(hidden))
    if model.projection is not None:
        vector, tastes = model.values[item], of_user[-hidden:]
        total = total + sum(tastes[k] * (model.projection[k] * vector).sum() for k in range(hidden))
        total = total + (model.projection[hidden] * vector).sum()
    return total


def loss(model: nn.Module, triples: list[tuple[int, int, int]]) -> Tensor:
    """Mean over triples (user, taken, other) of -ln sigmoid(difference) + l2 * squared norm of what it reads."""
    terms = []
    for user, taken, other in triples:
        difference = score(model, user, taken) - score(model, user, other)
        read = [model.user_factors[user]]
        if model.item_factors is not None:
            read += [model.item_factors[taken], model.item_factors[other]]
        if model.projection is not None:
            read.append(model.projection)
        norm = sum((tensor * tensor).sum() for tensor in read)
        terms.append(-torch.log(torch.sigmoid(difference)) + model.settings.l2 * norm)
    return sum(terms) / len(terms)
