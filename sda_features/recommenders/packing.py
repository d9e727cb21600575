"""Attention over sequences of very different length without paying for padding.

Real histories are short with a long tail: in Amazon Beauty a batch of 128 users is padded to 43
positions of which 7 are real. So everything point-wise runs on the real positions alone, as rows of
one matrix [N, d], and attention runs in groups of sequences of similar length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NARROWEST = 8


@dataclass(frozen=True)
class Group:
    """Sequences that attend in one call.

    Attributes:
        real: bool [B_g, L_g], False at padding.
        place: int64 [N_g], index of each real position in the flattened `real`.
    """

    real: Tensor
    place: Tensor


@dataclass(frozen=True)
class Packing:
    """Where the rows of a packed matrix come from.

    Attributes:
        shape: (B, L) of the padded batch.
        place: int64 [N], index of each row in the flattened [B, L].
        groups: in the order of the rows; their N_g add up to N.
    """

    shape: tuple[int, int]
    place: Tensor
    groups: tuple[Group, ...]

    @property
    def column(self) -> Tensor:
        """int64 [N], column of each row in 0..L-1."""
        return self.place % self.shape[1]

    def unpack(self, packed: Tensor) -> Tensor:
        """float [N, c] -> [B, L, c], zero at padding."""
        flat = packed.new_zeros(self.shape[0] * self.shape[1], packed.shape[1])
        return flat.index_copy(0, self.place, packed).view(*self.shape, -1)


def pack(real: Tensor) -> Packing:
    """Group the rows of a left-padded batch by length: up to 8, 16, 32, ... positions.

    Args:
        real: bool [B, L]; each row is False, then True to its end. All False is allowed.
    """
    batch, length = real.shape
    lengths = real.sum(dim=1)
    groups, places = [], []
    shorter = 0
    while shorter < length:
        width = min(max(NARROWEST, 2 * shorter), length)
        rows = ((lengths > shorter) & (lengths <= width)).nonzero().squeeze(1)
        if len(rows):
            own = real[rows, length - width :]
            place = own.flatten().nonzero().squeeze(1)
            groups.append(Group(own, place))
            places.append(rows[place // width] * length + length - width + place % width)
        shorter = width
    empty = torch.zeros(0, dtype=torch.int64, device=real.device)
    return Packing((batch, length), torch.cat([empty, *places]), tuple(groups))


def attention(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, *, heads: int, causal: bool, dropout: float
) -> Tensor:
    """softmax(Q K^T / sqrt(d / H)) V in each sequence, over its real positions (Vaswani et al. 2017, Eq. 1).

    Args:
        query: float [N, d], packed.
        key: like `query`.
        value: like `query`.
        packing: which rows form a sequence.
        heads: H, divides d.
        causal: whether a position sees only itself and earlier ones.
        dropout: rate on the attention weights.

    Returns:
        float [N, d].
    """
    projected = torch.cat([query, key, value], dim=1)
    attended = [projected.new_zeros(0, query.shape[1])]
    parts = torch.split(projected, [len(group.place) for group in packing.groups])
    for part, group in zip(parts, packing.groups, strict=True):
        batch, length = group.real.shape
        flat = part.new_zeros(batch * length, part.shape[1]).index_copy(0, group.place, part)
        # [B, L, 3, H, d / H] -> three times [B, H, L, d / H]
        q, k, v = flat.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        allowed = _allowed(group.real, causal)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
        attended.append(mixed.transpose(1, 2).reshape(batch * length, -1)[group.place])
    return torch.cat(attended)


def _allowed(real: Tensor, causal: bool) -> Tensor:
    """bool [B, 1, L, L]: may a query (row) see a key (column)."""
    length = real.shape[1]
    keys = real[:, None, None, :]
    if causal:
        keys = keys & torch.ones(length, length, dtype=torch.bool, device=real.device).tril()
    # A padding row without any key would be NaN, and NaN times a zero gradient stays NaN.
    return keys | torch.eye(length, dtype=torch.bool, device=real.device)
