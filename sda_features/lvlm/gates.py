"""Which expert serves which modality: the gates of a checkpoint, read without its base model."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from sda_features.errors import CheckpointError
from sda_features.lvlm.checkpoint import ADAPTER_FILE
from sda_features.lvlm.moda import expert_weights


def expert_gates(checkpoint: Path) -> NDArray[np.float32] | None:
    """omega^m (Eq. 6) of a checkpoint, the mean over the adapted linears of a decoder layer.

    Returns:
        float32 [layers, M, E], modalities in the order of `moda.MODALITIES`; None for an adapter
        without experts.

    Raises:
        CheckpointError: the adapter's file is missing or damaged.
    """
    try:
        tensors = load_file(checkpoint / ADAPTER_FILE)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint / ADAPTER_FILE} cannot be read: {error}") from error
    if "gates.weight" not in tensors:
        return None
    weights = expert_weights(*(tensors[f"gates.{name}"].float() for name in ("embedding", "weight", "bias")))
    layers = {match[1] for name in tensors if (match := re.search(r"\blayers\.(\d+)\.", name))}
    by_layer = weights.reshape(len(layers), -1, *weights.shape[1:])  # gates are in the model's order
    return by_layer.mean(dim=1).numpy()
