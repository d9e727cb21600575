"""The trainable item encoder: backbone, adapter, mean pooling and projection in one module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sda_features.config import AdapterSettings, ProjectionSettings
from sda_features.errors import SettingsError
from sda_features.lvlm.backbone import Backbone, PromptBatch, mean_pool
from sda_features.lvlm.moda import adapted_layers, attach_adapter


class PromptEncoder(nn.Module):
    """Prompts of one modality in, item vectors out (paper, section 2.1).

    Args:
        backbone: a loaded base model; its linears are wrapped in place.
        projection: how the pooled state becomes the d_m-dimensional vector.
    """

    def __init__(self, backbone: Backbone, adapter: AdapterSettings, projection: ProjectionSettings):
        super().__init__()
        if projection.kind == "pooled" and projection.dim > backbone.hidden_size:
            raise SettingsError(
                f"--projection-dim {projection.dim} is larger than the model's hidden size "
                f"{backbone.hidden_size}; a pooled projection can only make vectors smaller."
            )
        self.backbone = backbone
        self.gates = attach_adapter(backbone.model, adapter)
        self.model = backbone.model
        self.projection = projection
        self.dim = backbone.hidden_size if projection.kind == "none" else projection.dim
        self.linear: nn.Linear | None = None
        if projection.kind == "linear":
            self.linear = nn.Linear(backbone.hidden_size, self.dim, bias=False, device=backbone.device)

    def forward(self, batch: PromptBatch) -> Tensor:
        """Item vectors [B, d_m] in float32, not normalised."""
        with contextlib.nullcontext() if self.gates is None else self.gates.select(batch.modality):
            pooled = self._pooled(batch)
        if self.projection.kind == "pooled":
            return F.adaptive_avg_pool1d(pooled, self.dim)  # means of equal blocks
        return pooled if self.linear is None else self.linear(pooled)

    def unadapted(self, batch: PromptBatch) -> Tensor:
        """Pooled states of the base model [B, hidden] in float32: no adapter, no projection, no gradient."""
        layers = adapted_layers(self.model).values()
        for layer in layers:
            layer.enable_adapters(False)
        try:
            with torch.no_grad():
                return self._pooled(batch)
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    def _pooled(self, batch: PromptBatch) -> Tensor:
        batch = batch.to(self.backbone.device)
        dtype, kind = self.backbone.dtype, self.backbone.device.type
        casts = dtype != torch.float32 and kind != "meta"
        # Autocast does not know the meta device.
        with torch.autocast("cpu" if kind == "meta" else kind, dtype, enabled=casts):
            return mean_pool(self.backbone.hidden_states(batch), batch.lengths)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of everything that trains: factors A and B, gates, projection.

        The names are a checkpoint's keys; they do not depend on quantisation.
        """
        named: dict[str, nn.Parameter] = {}
        for name, layer in adapted_layers(self.model).items():
            named[f"{name}.A"] = next(layer.lora_A.parameters())
            named[f"{name}.B"] = next(layer.lora_B.parameters())
        for prefix, module in (("gates", self.gates), ("projection", self.linear)):
            if module is not None:
                named.update({f"{prefix}.{name}": value for name, value in module.named_parameters()})
        return named

    @contextlib.contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Encode deterministically in the middle of training.

        `eval()` would do that too, but on a CPU bitsandbytes repacks 4-bit weights for good when it
        first runs in evaluation mode, and repacked weights have no backward pass.
        """
        active = [module for module in self.modules() if isinstance(module, nn.Dropout) and module.training]
        for module in active:
            module.eval()
        try:
            yield
        finally:
            for module in active:
                module.train()

    def enable_gradient_checkpointing(self) -> None:
        """Recompute layers in the backward pass, under the gates their forward pass used."""
        options: dict[str, object] = {"use_reentrant": False}
        if self.gates is not None:
            options["context_fn"] = self.gates.checkpoint_contexts
        self.model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)  # type: ignore[operator]
