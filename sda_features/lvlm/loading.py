"""Published checkpoints from their files: configuration, weights, device, dtype and hash."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, BitsAndBytesConfig
from transformers.utils import cached_file
from transformers.utils.logging import disable_progress_bar

from sda_features.artifacts import sha256_files
from sda_features.config import BackboneSettings
from sda_features.errors import BackboneError
from sda_features.lvlm.attention import SHARED_PREFIX, WINDOWS
from sda_features.lvlm.patches import PatchEmbedding

VISION_TOWER = "visual"  # stays in full precision: it is small, and pictures suffer from 4-bit weights


def pick_device(name: str) -> str:
    """`auto` is cuda when there is one, else cpu."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU that has it, `fast` also on a CPU that multiplies it; else float32."""
    if name in ("auto", "fast"):
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported()
        else:
            fast = name == "fast" and (
                torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
            )
        return torch.bfloat16 if fast else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def load_config(settings: BackboneSettings, model_types: Sequence[str]) -> Any:
    """Configuration of a checkpoint whose `model_type` is one of `model_types`.

    Raises:
        BackboneError: no such checkpoint, or another type.
    """
    try:
        config = AutoConfig.from_pretrained(settings.model, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"No model at {settings.model!r}: expected a folder with config.json or the name of a model in "
            f"the local hub cache. transformers said: {str(error).splitlines()[0]}"
        ) from None
    if config.model_type not in model_types:
        raise BackboneError(
            f"{settings.model} is a {config.model_type!r} model; expected one of {', '.join(model_types)}."
        )
    return config


def load_model(
    settings: BackboneSettings, config: Any, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """The model without its language-model head, in evaluation mode, its vision tower not quantised.

    Raises:
        BackboneError: weights that cannot be loaded.
    """
    disable_progress_bar()
    quantization = {
        "nf4": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=[VISION_TOWER],
        ),
        "int8": BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=[VISION_TOWER]),
        "none": None,
    }[settings.quantization]
    try:
        model: nn.Module = AutoModel.from_pretrained(
            settings.model,
            config=config,
            dtype=dtype,
            device_map={"": str(device)},
            attn_implementation={"text_config": SHARED_PREFIX},
            quantization_config=quantization,
            use_safetensors=True,
            trust_remote_code=settings.trust_remote_code,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise BackboneError(f"The weights of {settings.model} cannot be loaded: {error}") from error
    model.visual.patch_embed = PatchEmbedding(model.visual.patch_embed.proj)  # type: ignore
    model.visual.config._attn_implementation = WINDOWS  # type: ignore
    return model.eval()


def fingerprint(settings: BackboneSettings) -> str:
    """SHA-256 (hex) of a checkpoint's configuration and weights; quantisation does not count.

    Raises:
        BackboneError: no configuration, or no weights in safetensors beside it.
    """
    config_file = cached_file(settings.model, "config.json")
    if config_file is None:
        raise BackboneError(f"{settings.model} has no config.json.")
    weights = sorted(Path(config_file).parent.glob("*.safetensors"))
    if not weights:
        raise BackboneError(f"Expected weights in safetensors beside {config_file}, found none.")
    return sha256_files([Path(config_file), *weights])
