"""Cross-entropy over a whole catalogue without the matrix of all logits.

For N positions and I items the logits are N x I floats, 50 MB for a batch of Amazon Beauty, and a
processor spends longer on moving them than on computing them. So a block of positions goes from
logits to gradients while it lies in the cache, and the next block takes its place.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

LOGITS_AT_ONCE = 1 << 19  # 2 MiB of float32


def softmax_loss(states: Tensor, table: Tensor, targets: Tensor, candidates: Tensor | None = None) -> Tensor:
    """-mean log softmax(E h)[target], over the catalogue without padding, or over some of it.

    On a CPU both gradients come with the forward pass: for p = softmax(E h), dL/dh = E^T (p - y) / N
    and dL/dE = sum (p - y) h^T / N, where y is 1 at the target. There is no second derivative.

    Args:
        states: float [N, d], h.
        table: float [I + 1, d], E; row 0 is left out.
        targets: int64 [N], item codes 1..I.
        candidates: int64 [C], 0 and then the codes of the items that compete, sorted; all targets are
            among them. None: the whole catalogue.

    Returns:
        float, scalar.
    """
    if candidates is not None:
        table, targets = table[candidates], torch.searchsorted(candidates, targets)
    if states.device.type != "cpu":
        return F.cross_entropy(states @ table[1:].T, targets - 1)
    loss: Tensor = _BlockedSoftmaxLoss.apply(states, table, targets)  # type: ignore[no-untyped-call]
    return loss


class _BlockedSoftmaxLoss(Function):
    """`softmax_loss`, block by block."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, table: Tensor, targets: Tensor) -> Tensor:
        items, wanted = table[1:], any(ctx.needs_input_grad)
        rows = max(1, LOGITS_AT_ONCE // len(items))
        buffer = states.new_empty(min(rows, len(states)), len(items))
        log_sums = torch.empty_like(states[:, 0])
        of_states, of_table = torch.empty_like(states), torch.zeros_like(table)
        for start in range(0, len(states), rows):
            block = slice(start, start + rows)
            h = states[block]
            logits = torch.mm(h, items.T, out=buffer[: len(h)])
            largest = logits.amax(dim=1, keepdim=True)
            exponentials = logits.sub_(largest).exp_()
            sums = exponentials.sum(dim=1, keepdim=True)
            log_sums[block] = (largest + sums.log()).squeeze(1)
            if wanted:
                of_states[block] = exponentials @ items / sums
                of_table[1:].addmm_(exponentials.T, h / sums)
        of_targets = table[targets]
        if wanted:
            ctx.save_for_backward(
                of_states.sub_(of_targets), of_table.index_add_(0, targets, states, alpha=-1)
            )
        return (log_sums - (states * of_targets).sum(dim=1)).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        of_states, of_table = ctx.saved_tensors
        scale = gradient / len(of_states)
        return of_states * scale, of_table * scale, None
