"""MoDA as the paper writes it: a loop over experts (Eq. 6 and 7). Slow; an oracle only."""

import torch
from torch import Tensor


def expert_loop(
    x: Tensor, a: Tensor, b: Tensor, embedding: Tensor, weight: Tensor, bias: Tensor, alpha: float
) -> Tensor:
    """sum_i omega_i B_i A_i x times alpha / r, for one layer and one modality.

    Args:
        x: [..., d_in].
        a: [r, d_in], experts' A_i stacked.
        b: [d_out, r], experts' B_i side by side.
        embedding: [G] of the modality.
        weight: [E, G] of the layer's gate.
        bias: [E].
    """
    rank, experts = a.shape[0], weight.shape[0]
    width = rank // experts
    omega = torch.softmax(weight @ embedding + bias, dim=0)
    total = torch.zeros(*x.shape[:-1], b.shape[0], dtype=x.dtype)
    for i in range(experts):
        rows = slice(i * width, (i + 1) * width)
        total = total + omega[i] * (x @ a[rows].T @ b[:, rows].T)
    return total * alpha / rank
