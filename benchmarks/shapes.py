"""Folders that have all of a published Qwen2.5-VL checkpoint but its weights, and models with random ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from sda_features.demo.model import build_tiny_model
from sda_features.lvlm.attention import SHARED_PREFIX
from sda_features.lvlm.loading import VISION_TOWER, finished

# Widths and depths of the published configurations.
VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
SIZES: dict[str, dict[str, Any]] = {
    "7B": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_window_layers": 28,
        "tie_word_embeddings": False,
    },
    "3B": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "max_window_layers": 36,
        "tie_word_embeddings": True,
    },
}
ROPE = {"rope_theta": 1_000_000.0, "rope_type": "default", "mrope_section": [16, 24, 24]}


def write_folder(folder: Path, size: str, texts: list[str]) -> None:
    """Write configuration, tokenizer and image processor of a size; "tiny" has its weights, too."""
    build_tiny_model(folder, texts, hidden_size=128, layers=3)
    if size == "tiny":
        return
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    text = SIZES[size]
    inner = config.get("text_config", config)
    for stale in ("layer_types", "head_dim", "rope_scaling"):
        inner.pop(stale, None)
    inner.update(text, rope_parameters=ROPE, max_position_embeddings=128_000)
    config["vision_config"].update(VISION, out_hidden_size=text["hidden_size"])
    path.write_text(json.dumps(config), encoding="utf-8")
    for weights in folder.glob("*.safetensors*"):
        weights.unlink()


def random_model(folder: Path, device: torch.device, dtype: torch.dtype, quantization: str) -> nn.Module:
    """A model of the folder's configuration with random weights, made on its device."""
    with torch.device(device):
        model = AutoModel.from_config(
            AutoConfig.from_pretrained(folder),
            dtype=dtype,
            attn_implementation={"text_config": SHARED_PREFIX},
        )
    if quantization == "nf4":
        quantise(model, device, dtype)
    return finished(model)


def quantise(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Put bitsandbytes' NF4 linears in place of the language model's, one by one."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or name.startswith(VISION_TOWER):
            continue
        smaller = Linear4bit(
            module.in_features,
            module.out_features,
            module.bias is not None,
            dtype,
            quant_type="nf4",
            device="meta",
        )
        smaller.weight = Params4bit(module.weight.data, requires_grad=False, quant_type="nf4", module=smaller)
        smaller.bias = module.bias
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, smaller.to(device))
