"""MoDA: low-rank experts that each modality combines in its own proportions (paper, section 2.2).

The weighted sum of experts is one ordinary LoRA with a diagonal between its factors:

    sum_i w_i B_i A_i x  =  B (g * (A x)),    g = w, each entry repeated r_e times        (Eq. 7)

with A [r, d_in] the experts' A_i stacked, B [d_out, r] their B_i side by side. So no loop runs over
experts, any linear that PEFT's LoRA wraps (plain, 4-bit, 8-bit) can be adapted, and for a fixed
modality the adapter is exactly a stock LoRA of rank r.

| paper | here |
|---|---|
| Emb_m, Gate (Eq. 6) | `ModalityGates.embedding`, `.weight`, `.bias` |
| omega^m | `expert_weights` |
| A_i, B_i, r, r_e | PEFT's `lora_A`, `lora_B`, `AdapterSettings.rank`, rank / experts |
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import LoraVariant
from peft.tuners.tuners_utils import cast_adapter_dtype
from torch import Tensor, nn

from sda_features.config import MODALITIES, AdapterSettings
from sda_features.errors import BackboneError

ADAPTER_NAME = "default"


def expert_weights(embedding: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """omega^m = softmax(W Emb_m + b) for every adapted layer at once (Eq. 6).

    Modality embeddings [M, G], gate weights [L, E, G] of each adapted layer and their bias [L, E]
    -> [L, M, E], each row summing to 1.
    """
    return torch.softmax(torch.einsum("leg,mg->lme", weight, embedding) + bias[:, None, :], dim=-1)


def rank_gates(weights: Tensor, rank: int, scaling: float) -> Tensor:
    """The diagonal g of Eq. 7 with LoRA's scaling alpha / r folded in.

    Expert weights [..., E] -> [..., r]; E divides r, the rank.
    """
    return scaling * weights.repeat_interleave(rank // weights.shape[-1], dim=-1)


class ModalityGates(nn.Module):
    """Gate parameters of all adapted layers, evaluated together once a forward pass.

    `selected` holds one gate a layer, [1 | B, 1, r], for the forward pass in progress; `select`
    sets it. A layer reads its gate by position, so that the pass costs no softmax a layer.
    """

    def __init__(self, layers: int, settings: AdapterSettings):
        super().__init__()
        self.rank = settings.rank
        self.scaling = settings.alpha / settings.rank
        self.embedding = nn.Parameter(torch.randn(len(MODALITIES), settings.gate_dim))
        bound = settings.gate_dim**-0.5
        self.weight = nn.Parameter(
            torch.empty(layers, settings.experts, settings.gate_dim).uniform_(-bound, bound)
        )
        self.bias = nn.Parameter(torch.zeros(layers, settings.experts))
        self._of_thread = threading.local()

    def forward(self) -> Tensor:
        """All gates, [L, M, r]."""
        return rank_gates(expert_weights(self.embedding, self.weight, self.bias), self.rank, self.scaling)

    @contextlib.contextmanager
    def select(self, modality: str | Tensor) -> Iterator[None]:
        """Use the gates of `modality` inside the block.

        Args:
            modality: a name in `MODALITIES` for the whole batch, or an int64 tensor [B] of
                positions in `MODALITIES`, one for each row of a mixed batch.
        """
        if isinstance(modality, str):
            position = MODALITIES.index(modality)
            # A slice: an index would be copied to a GPU, and waited for.
            gates = self()[:, position : position + 1, None, :]  # [L, 1, 1, r]
        else:
            gates = self()[:, modality.to(self.embedding.device), None, :]  # [L, B, 1, r]
        with self._selecting(gates.unbind(0)):
            yield

    def checkpoint_contexts(
        self,
    ) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        """Contexts for `torch.utils.checkpoint(context_fn=...)`.

        The backward pass recomputes a layer when another modality may be selected by then; the
        second context brings back the gates that the forward pass used.
        """
        return contextlib.nullcontext(), self._selecting(self.selected)

    @property
    def selected(self) -> tuple[Tensor, ...] | None:
        """The gates of the forward pass in progress; each thread has its own."""
        return getattr(self._of_thread, "selected", None)

    @contextlib.contextmanager
    def _selecting(self, gates: tuple[Tensor, ...] | None) -> Iterator[None]:
        before, self._of_thread.selected = self.selected, gates
        try:
            yield
        finally:
            self._of_thread.selected = before


class GatedVariant(LoraVariant):  # type: ignore[misc]
    """The LoRA forward of PEFT's layers with a gate between A and B (Eq. 7).

    PEFT's layers, quantised ones too, hand their forward pass to a variant; this is MoDA's.
    """

    def __init__(self, gates: ModalityGates, position: int):
        self.gates = gates
        self.position = position

    def forward(
        self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        """W_0 x + B (g * (A x)): x [B, T, d_in] in the adapter's dtype, `result` [B, T, d_out] is W_0 x.

        Raises:
            BackboneError: no modality is selected.
        """
        if self.gates.selected is None:
            raise BackboneError("A MoDA layer ran outside `ModalityGates.select`: its modality is unknown.")
        low_rank = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))  # [B, T, r]
        gate = self.gates.selected[self.position]
        update: Tensor = module.lora_B[active_adapter](low_rank * gate.to(low_rank.dtype))  # [B, T, d_out]
        return result + update.to(result.dtype)

    @staticmethod
    def merge_safe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """MoDA has one weight for each modality: merge an exported LoRA instead."""
        raise BackboneError("A MoDA adapter does not merge into one weight; export it as LoRA first.")

    merge_unsafe = merge_safe
    unmerge = merge_safe


def attach_adapter(model: nn.Module, settings: AdapterSettings) -> ModalityGates | None:
    """Freeze a model, quantised or not, and add trainable LoRA factors to its language-model linears, in place.

    Returns:
        The gates, whose parameters train with the factors; None for plain LoRA or no adapter.

    Raises:
        BackboneError: no module of the model has one of the target names.
    """
    model.requires_grad_(False)
    if settings.kind == "none":
        return None
    names = "|".join(map(re.escape, settings.target_modules))
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=rf"(?:.*\.)?language_model\..*\.(?:{names})",
    )
    try:
        inject_adapter_in_model(config, model, adapter_name=ADAPTER_NAME)
    except ValueError as error:
        raise BackboneError(
            f"No language-model linear is named {', '.join(settings.target_modules)}; "
            f"set --adapter-target-modules to names that the model has. PEFT said: {error}"
        ) from None
    cast_adapter_dtype(model, ADAPTER_NAME)  # small AdamW steps vanish in 16 bits
    layers = adapted_layers(model)
    for layer in layers.values():
        layer.cast_input_dtype_enabled = False  # autocast casts; float32 copies would be kept for nothing
    if settings.kind == "lora":
        return None
    gates = ModalityGates(len(layers), settings).to(next(model.parameters()).device)
    for position, layer in enumerate(layers.values()):
        layer.lora_variant[ADAPTER_NAME] = GatedVariant(gates, position)
    return gates


def adapted_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Module name -> PEFT layer, in the model's order, which is the order of the gates."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
