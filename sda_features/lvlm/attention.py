"""Attention of the language model and of the vision tower, with the structure of a batch made use of.

`shared_prefix`: prompts of one modality share the chat header and the instruction, a sixth to a
third of the tokens of a text, and attention is causal, so the states of a common beginning depend
on nothing that follows. A batch then runs as one sequence, the beginning and the rest of every row,

    [1, P + B S]  in place of  [B, P + S],

through a model that works position by position but for its attention.

`windows`: a vision tower attends inside windows, hundreds in a batch; those of one size go together.

The results are those of transformers' own attention, up to rounding.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

varlen_attn: Any = None  # torch has it from 2.10 on
with contextlib.suppress(ImportError):
    from torch.nn.attention.varlen import varlen_attn

SHARED_PREFIX = "sda_shared_prefix"  # names in transformers
WINDOWS = "sda_flash_windows"  # a name with "flash" in it is handed all windows at once
SHORT = 256  # keys up to which a CPU multiplies whole matrices faster than block by block


@dataclass(frozen=True)
class Layout:
    """Where the rows of a batch lie in the one sequence.

    Attributes:
        prefix: P, tokens that all rows begin with.
        rows: B; S tokens each follow, row after row.
        visible: bool [S, P + S], which tokens a row's own tokens see; needed for attention.
    """

    prefix: int
    rows: int
    visible: Tensor | None = None

    def join(self, padded: Tensor) -> Tensor:
        """[..., B, P + S] -> [..., 1, P + B S]."""
        shared = padded[..., :1, : self.prefix]
        return torch.cat([shared, padded[..., self.prefix :].flatten(-2)[..., None, :]], dim=-1)

    def split(self, joined: Tensor) -> Tensor:
        """[1, P + B S, d] -> [B, P + S, d]."""
        shared = joined[:, : self.prefix].expand(self.rows, -1, -1)
        return torch.cat([shared, joined[:, self.prefix :].view(self.rows, -1, joined.shape[2])], dim=1)

    def rows_of(self, joined: Tensor) -> Tensor:
        """[1, H, P + B S, d] -> [B, H, S, d]."""
        _, heads, _, width = joined.shape
        return joined[0, :, self.prefix :].reshape(heads, self.rows, -1, width).transpose(0, 1)

    def contexts_of(self, joined: Tensor) -> Tensor:
        """[1, K, P + B S, d] -> [B, K, P + S, d]."""
        shared = joined[:, :, : self.prefix].expand(self.rows, -1, -1, -1)
        return torch.cat([shared, self.rows_of(joined)], dim=2)


@dataclass(frozen=True)
class Windows:
    """Which of N positions attend to each other: those of one window.

    Attributes:
        bounds: int32 [W + 1], where the windows begin, and N.
        groups: (length S, number of windows of that length), shortest first.
        order: int64 [N], the positions window by window, in the order of `groups`.
        back: int64 [N], from that order to the positions.
    """

    bounds: Tensor
    groups: tuple[tuple[int, int], ...]
    order: Tensor
    back: Tensor

    @classmethod
    def of(cls, bounds: Tensor) -> Windows:
        """The layout of windows with these bounds, on the CPU."""
        bounds = bounds.cpu()
        starts, lengths = bounds[:-1].long(), bounds.diff()
        sizes = sorted(set(lengths.tolist()))
        begin = {size: starts[lengths == size, None] for size in sizes}
        order = torch.cat([(begin[size] + torch.arange(size)).flatten() for size in sizes])
        groups = tuple((size, len(begin[size])) for size in sizes)
        return cls(bounds.int(), groups, order, order.argsort())

    def mapped(self, move: Callable[[Tensor], Tensor]) -> Windows:
        """The same with each tensor moved."""
        return replace(self, bounds=move(self.bounds), order=move(self.order), back=move(self.back))


def common_prefix(input_ids: Tensor, lengths: Tensor, picture: int) -> int:
    """Number of tokens that all rows of `input_ids` begin with, int64 [B, T], right-padded from int64 [B] `lengths`.

    It ends before the first `picture` token, which stands for another patch in each row, and leaves
    each row at least one token of its own.
    """
    same = (input_ids == input_ids[0]).all(dim=0) & (input_ids[0] != picture)
    return min(int(same.long().cumprod(0).sum()), int(lengths.min()) - 1)


def shared_prefix(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention of a language model's layer; with a layout each row sees the prefix and itself.

    Args:
        query: [1, H, P + B S, d]; without a layout [B, H, T, d], and so on.
        key, value: [1, K, P + B S, d], K a divisor of H.
        attention_mask: none with a layout.
        layout: of the one sequence; without one this is transformers' scaled dot-product attention.
        options: `scaling`, and what else transformers passes.

    Returns:
        [1, P + B S, H, d] and None.
    """
    if query.is_meta:
        return _kept_on_a_gpu(query, key, value), None
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)  # type: ignore[no-any-return]
    of_prefix, _ = sdpa_attention_forward(
        module, *(states[:, :, : layout.prefix] for states in (query, key, value)), None, **options
    )
    queries, keys, values = layout.rows_of(query), layout.contexts_of(key), layout.contexts_of(value)
    of_rows = _attend(module, queries, keys, values, layout.visible, options["scaling"])
    return torch.cat([of_prefix, of_rows.reshape(1, -1, *of_rows.shape[2:])], dim=1), None


def _kept_on_a_gpu(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[B, T, H, d] without numbers; autograd keeps what it keeps of the flash kernel, not a T x T matrix."""
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    attended: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, True)[0]
    return attended.transpose(1, 2)


def windows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    layouts: Mapping[int, Windows] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Full attention inside each window of a vision tower's layer.

    Args:
        query, key, value: [1, H, N, d].
        cu_seq_lens_q: int [W + 1], where the windows begin, and N.
        layouts: W + 1 -> layout of the windows, on the states' device; without it a GPU is waited for.
        options: `scaling`, and what else transformers passes.

    Returns:
        [1, N, H, d] and None.
    """
    scaling: float = options["scaling"]
    layout = (layouts or {}).get(len(cu_seq_lens_q)) or Windows.of(cu_seq_lens_q).mapped(
        lambda tensor: tensor.to(query.device)
    )
    rows = [states[0].transpose(0, 1) for states in (query, key, value)]  # [N, H, d]
    if _varlen_runs(query, scaling):
        q, k, v = (of.contiguous() for of in rows)
        longest = layout.groups[-1][0]
        return varlen_attn(q, k, v, layout.bounds, layout.bounds, longest, longest)[None], None
    sizes = [length * count for length, count in layout.groups]
    grouped = zip(*(torch.split(of.index_select(0, layout.order), sizes) for of in rows), strict=True)
    parts = []
    for (length, _), states in zip(layout.groups, grouped, strict=True):
        q, k, v = (of.view(-1, length, *of.shape[1:]).transpose(1, 2) for of in states)  # [W, H, S, d]
        parts.append(_attend(module, q, k, v, None, scaling).flatten(0, 1))
    return torch.cat(parts).index_select(0, layout.back)[None], None


def _varlen_runs(query: Tensor, scaling: float) -> bool:
    """Whether torch's kernel for sequences of different lengths takes these: one launch for all windows."""
    width = query.shape[-1]
    return (
        varlen_attn is not None
        and query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and width % 8 == 0
        and math.isclose(scaling, width**-0.5, rel_tol=1e-6)  # the kernel's own
    )


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, scaling: float
) -> Tensor:
    """[B, H, S, d], [B, K, T, d] twice, and bool [S, T] or None for all -> [B, S, H, d]."""
    if query.device.type == "cpu" and key.shape[2] <= SHORT:
        return _dense(query, key, value, visible, scaling)
    mask = None if visible is None else visible[None, None]
    attended, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, is_causal=False)
    return attended  # type: ignore[no-any-return]


def _dense(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, scaling: float) -> Tensor:
    """`_attend` with all products at once; the H / K queries that share a key stand below each other."""
    batch, heads, own, width = query.shape
    groups = key.shape[1]
    bias = query.new_zeros(1)
    if visible is not None:
        bias = torch.zeros_like(visible, dtype=query.dtype).masked_fill_(~visible, float("-inf"))
        bias = bias.repeat(heads // groups, 1)
    products = torch.baddbmm(
        bias,
        query.reshape(batch * groups, -1, width),
        key.flatten(0, 1).transpose(1, 2),
        alpha=scaling,
    )
    weighted = torch.bmm(F.softmax(products, dim=-1), value.flatten(0, 1))
    return weighted.view(batch, heads, own, width).transpose(1, 2)


AttentionInterface.register(SHARED_PREFIX, shared_prefix)
AttentionMaskInterface.register(SHARED_PREFIX, sdpa_mask)
AttentionInterface.register(WINDOWS, windows)
