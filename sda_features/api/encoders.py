"""What makes vectors, as the options of a call name it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sda_features.config import BackboneSettings, PromptSettings
from sda_features.errors import SettingsError

if TYPE_CHECKING:
    from sda_features.lvlm.item_encoder import ItemEncoder


def load_encoder(
    checkpoint: str | Path | None, dim: int | None, overrides: dict[str, Any], feature_set: str
) -> ItemEncoder:
    """The encoder that `checkpoint`, or a model alone, names."""
    from sda_features.lvlm.checkpoint import load_checkpoint, pretrained
    from sda_features.lvlm.dual_encoder import DualEncoder

    if checkpoint is not None:
        return load_checkpoint(Path(checkpoint), dim, **overrides)
    loaded = pretrained(BackboneSettings.parse(**overrides), PromptSettings())
    if feature_set == "vanilla" and isinstance(loaded, DualEncoder):
        raise SettingsError(
            f"Expected --feature-set for the vectors of {overrides['model']}, such as clip: the default, vanilla, "
            "is for unadapted Qwen-VL models. Nothing was written."
        )
    return loaded


def overrides_of(
    model: str | None, quantization: str | None, dtype: str | None, device: str | None, remote_code: bool
) -> dict[str, Any]:
    """Settings of the backbone that were given; a model's folder as a worker elsewhere finds it."""
    if model is not None and Path(model).exists():
        model = str(Path(model).resolve())
    given: dict[str, Any] = {"model": model, "quantization": quantization, "dtype": dtype, "device": device}
    given["trust_remote_code"] = remote_code or None
    return {name: value for name, value in given.items() if value is not None}
