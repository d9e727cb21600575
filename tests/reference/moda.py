"""MoDA as the paper writes it: a loop over experts (Eq. 6 and 7). Slow; an oracle only."""

from collections.abc import Mapping

import torch
from torch import Tensor


def expert_loop(
    x: Tensor, tensors: Mapping[str, Tensor], name: str, layer: int, modality: int, alpha: float
) -> Tensor:
    """sum_i omega_i B_i A_i x times alpha / r, for one layer and one modality, by their numbers.

    Args:
        x: [..., d_in].
        tensors: of the layer `name`.A [r, d_in], experts' A_i stacked, and `name`.B [d_out, r], experts'
            B_i side by side; of all gates.embedding [M, G], gates.weight [L, E, G] and gates.bias [L, E].
    """
    a, b, weight = tensors[f"{name}.A"], tensors[f"{name}.B"], tensors["gates.weight"][layer]
    omega = torch.softmax(weight @ tensors["gates.embedding"][modality] + tensors["gates.bias"][layer], dim=0)
    rank, experts = len(a), len(weight)
    total = torch.zeros(*x.shape[:-1], len(b), dtype=x.dtype)
    for i in range(experts):
        rows = slice(i * rank // experts, (i + 1) * rank // experts)
        total = total + omega[i] * (x @ a[rows].T @ b[:, rows].T)
    return total * alpha / rank
