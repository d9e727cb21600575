"""Published checkpoints from their files: configuration, weights, tokenizer, image processor, device and dtype."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, BitsAndBytesConfig
from transformers.utils.logging import disable_progress_bar

from sda_features.artifacts import sha256_json
from sda_features.config import BackboneSettings
from sda_features.devices import pick_device
from sda_features.errors import BackboneError, foreign
from sda_features.lvlm.attention import SHARED_PREFIX, WINDOWS
from sda_features.lvlm.patches import PatchEmbedding
from sda_features.lvlm.weights import check_whole, locate, read_config

VISION_TOWER = "visual"  # stays in full precision: it is small, and pictures suffer from 4-bit weights


def use_device(name: str) -> torch.device:
    """The device of that name, made the current one: generators and kernels of a GPU go by the current one."""
    device = pick_device(name)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True  # of float32 on tensor cores; docs/gpu.md
        if device.index is not None:
            torch.cuda.set_device(device)
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU that has it, `fast` also on a CPU that multiplies it; else float32."""
    if name in ("auto", "fast"):
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)  # Turing emulates it, slowly
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
    read_config(locate(settings.model))
    with foreign(BackboneError, f"The configuration of {settings.model} cannot be used"):
        config = AutoConfig.from_pretrained(settings.model, trust_remote_code=settings.trust_remote_code)
    if config.model_type not in model_types:
        raise BackboneError(
            f"{settings.model} is a {config.model_type!r} model; expected one of {', '.join(model_types)}."
        )
    if quantized := getattr(config, "quantization_config", None):
        method = quantized.get("quant_method", "quantised") if isinstance(quantized, dict) else "quantised"
        raise BackboneError(
            f"{settings.model} has been quantised already ({method}); expected the model as it was trained, which "
            "--quantization nf4 or int8 then makes small."
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
    options = {
        "config": config,
        "dtype": dtype,
        "attn_implementation": {"text_config": SHARED_PREFIX},
        "trust_remote_code": settings.trust_remote_code,
    }
    if device.type == "meta":  # no weights are read, so there need be none
        with torch.device("meta"):
            return finished(AutoModel.from_config(**options))
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
    check_whole(settings.model)
    with foreign(BackboneError, f"The weights of {settings.model} cannot be loaded"):
        model, read = AutoModel.from_pretrained(
            settings.model,
            device_map={"": str(device)},
            quantization_config=quantization,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    if missing := sorted(read["missing_keys"]):  # transformers would go on with random numbers
        raise BackboneError(
            f"{settings.model} lacks {len(missing)} weights of the model, {missing[0]} for one; copy or download it "
            "again."
        )
    return finished(model)


def finished(model: nn.Module) -> nn.Module:
    """A model as transformers makes it, with this package's patch embedding and windows, in evaluation mode."""
    model.visual.patch_embed = PatchEmbedding(model.visual.patch_embed.proj)  # type: ignore
    model.visual.config._attn_implementation = WINDOWS  # type: ignore
    return model.eval()  # type: ignore[no-any-return]


def load_tokenizer(settings: BackboneSettings) -> Any:
    """The tokenizer of a checkpoint, which must have a chat template.

    Raises:
        BackboneError: there is none, or it cannot be loaded.
    """
    with foreign(BackboneError, f"The tokenizer of {settings.model} cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(
            settings.model, trust_remote_code=settings.trust_remote_code
        )
    if not tokenizer.chat_template:
        raise BackboneError(
            f"{settings.model} has no tokenizer or no chat template: expected chat_template.jinja or `chat_template` "
            "in tokenizer_config.json, as the published model has it. Copy the whole folder."
        )
    return tokenizer


def load_image_processor(settings: BackboneSettings) -> Any:
    """The image processor of a checkpoint.

    Raises:
        BackboneError: there is none, or it cannot be loaded.
    """
    with foreign(BackboneError, f"The image processor of {settings.model} cannot be loaded"):
        return AutoImageProcessor.from_pretrained(
            settings.model, trust_remote_code=settings.trust_remote_code, backend="pil"
        )


def tokenizer_sha256(tokenizer: Any) -> str:
    """SHA-256 (hex) of what decides a text's tokens: vocabulary, merges, and the steps before them."""
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state |= {"truncation": None, "padding": None}  # arguments of the last call
    else:  # SentencePiece: its rules are in the class and in this one setting
        state = [tokenizer.get_vocab(), getattr(tokenizer, "do_lower_case", None)]
    return sha256_json(state)
