"""Attention over sequences of very different length without paying for padding.

Real histories are short with a long tail: in Amazon Beauty a batch of 128 users is padded to 43
positions of which 7 are real. So everything point-wise runs on the real positions alone, as rows of
one matrix [N, d], and attention runs in groups of sequences of similar length.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

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

    @property
    def full(self) -> bool:
        """Whether there is no padding."""
        return len(self.place) == self.real.numel()

    def unpack(self, packed: Tensor, heads: int) -> Tensor:
        """float [N_g, d] -> [B_g, H, L_g, d / H], zero at padding."""
        batch, length = self.real.shape
        if not self.full:
            zeros = packed.new_zeros(batch * length, packed.shape[1])
            packed = zeros.index_copy(0, self.place, packed)
        return packed.view(batch, length, heads, -1).transpose(1, 2)


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

    @cached_property
    def column(self) -> Tensor:
        """int64 [N], column of each row in 0..L-1."""
        return self.place % self.shape[1]

    @cached_property
    def last(self) -> Tensor:
        """int64 [S], the row with the last position of each of the S sequences, in the order of the rows."""
        return (self.column == self.shape[1] - 1).nonzero().squeeze(1)

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
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    *,
    heads: int,
    causal: bool,
    dropout: float,
    last: bool = False,
) -> Tensor:
    """softmax(Q K^T / sqrt(d / H)) V in each sequence, over its real positions (Vaswani et al. 2017, Eq. 1).

    Args:
        query: float [N, d], packed; with `last` [S, d].
        key: float [N, d], packed.
        value: like `key`.
        packing: which rows form a sequence.
        heads: H, divides d.
        causal: whether a position sees only itself and earlier ones.
        dropout: rate on the attention weights.
        last: the queries are those of `packing.last`, which see the whole sequence.

    Returns:
        float, the shape of `query`.
    """
    places = [len(group.place) for group in packing.groups]
    own = [len(group.real) for group in packing.groups] if last else places
    parts = (torch.split(query, own), torch.split(key, places), torch.split(value, places), packing.groups)
    attended = [query.new_zeros(0, query.shape[1])]
    for q, k, v, group in zip(*parts, strict=True):
        q = q.view(len(q), 1, heads, -1).transpose(1, 2) if last else group.unpack(q, heads)
        mixed = F.scaled_dot_product_attention(
            q,
            group.unpack(k, heads),
            group.unpack(v, heads),
            attn_mask=_allowed(group, causal=causal, last=last),
            dropout_p=dropout,
            is_causal=group.full and causal and not last,
        )
        rows = mixed.transpose(1, 2).flatten(0, 1).flatten(1)  # [B_g L_g or B_g, d]
        attended.append(rows if last or group.full else rows[group.place])
    return torch.cat(attended)


def _allowed(group: Group, *, causal: bool, last: bool) -> Tensor | None:
    """bool [B, 1, L or 1, L]: may a query (row) see a key (column); None where there is no padding."""
    if group.full:
        return None
    keys = group.real[:, None, None, :]
    if last:
        return keys
    length = keys.shape[3]
    if causal:
        keys = keys & torch.ones(length, length, dtype=torch.bool, device=keys.device).tril()
    # A padding row without any key would be NaN, and NaN times a zero gradient stays NaN.
    return keys | torch.eye(length, dtype=torch.bool, device=keys.device)
