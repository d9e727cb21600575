"""A tiny checkpoint with a real architecture: Qwen2-VL, Qwen2.5-VL or Qwen3-VL, offline, in seconds.

Everything that a published checkpoint of the family has is there and loads the same way: weights in
safetensors, a byte-level BPE tokenizer with Qwen's control tokens, a chat template, an image
processor's settings. Only the widths are small and the weights are new.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sda_features.artifacts import atomic_folder
from sda_features.config import PromptSettings
from sda_features.errors import SettingsError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

Architecture = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]

CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif part.type == 'text' %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
MERGE_SIZE = 2  # patches on a side that become one visual token
PATCH_SIZE = {"qwen2_vl": 14, "qwen2_5_vl": 14, "qwen3_vl": 16}  # pixels, as published
VISUAL_TOKENS = (4, 9)  # of one picture, least and most


def build_tiny_model(
    folder: Path,
    texts: Iterable[str],
    *,
    seed: int = 0,
    architecture: Architecture = "qwen2_5_vl",
    hidden_size: int = 128,
    layers: int = 3,
    vision_layers: int = 2,
    vocabulary: int = 1024,
) -> None:
    """Write a randomly initialised checkpoint that AutoModel, AutoTokenizer and AutoImageProcessor load.

    Args:
        folder: where it goes; an existing folder is replaced.
        texts: what the tokenizer is trained on; words it does not know become bytes.
        seed: of the initialisation; the global torch generator is left alone.
        architecture: `model_type` of the checkpoint.
        hidden_size: width of both towers; a multiple of 64, because a 4-bit block holds 64 weights of a row.
        layers: decoder layers of the language model.
        vision_layers: blocks of the vision tower.
        vocabulary: most entries of the tokenizer, at least 264 (256 bytes and the control tokens).

    Raises:
        SettingsError: unknown architecture, or a size that does not fit.
    """
    if architecture not in PATCH_SIZE:
        raise SettingsError(
            f"Unknown architecture {architecture!r}; expected one of {', '.join(PATCH_SIZE)}."
        )
    if hidden_size % 64 or hidden_size < 64 or min(layers, vision_layers) < 1 or vocabulary < 264:
        raise SettingsError(
            f"A tiny model needs a hidden size that is a multiple of 64, at least one layer in each tower and "
            f"264 vocabulary entries; got {hidden_size}, {layers}, {vision_layers} and {vocabulary}."
        )
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = _train_tokenizer(texts, vocabulary)
    config = _configuration(architecture, tokenizer, hidden_size, layers, vision_layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        processor = json.dumps(_image_processor(architecture), indent=2)
        (temporary / "preprocessor_config.json").write_text(processor + "\n", encoding="utf-8")


def _train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    prompts = PromptSettings()
    frame = ["user\n", "assistant\n", f"{prompts.text_instruction}\n", prompts.image_instruction]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*frame, *frame, *texts], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(CONTROL_TOKENS),
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=2048,
    )


def _configuration(
    architecture: Architecture,
    tokenizer: PreTrainedTokenizerFast,
    hidden_size: int,
    layers: int,
    vision_layers: int,
) -> PreTrainedConfig:
    from transformers import AutoConfig

    head_dim = 32 if hidden_size >= 128 else 16
    heads = hidden_size // head_dim
    token_ids = dict(zip(CONTROL_TOKENS, tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS)), strict=True))
    width, height = 3 * head_dim // 16, 3 * head_dim // 16  # rotary frequencies; time takes the rest
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "mrope_section": [head_dim // 2 - width - height, height, width],
    }
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "max_position_embeddings": tokenizer.model_max_length,
        "initializer_range": hidden_size**-0.5,
        "rope_parameters": rope,
        "bos_token_id": token_ids["<|endoftext|>"],
        "eos_token_id": token_ids["<|im_end|>"],
    }
    vision: dict[str, Any] = {
        "depth": vision_layers,
        "num_heads": heads,
        "patch_size": PATCH_SIZE[architecture],
        "spatial_merge_size": MERGE_SIZE,
        "initializer_range": hidden_size**-0.5,
    }
    if architecture == "qwen2_vl":
        vision |= {"embed_dim": hidden_size, "hidden_size": hidden_size, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": hidden_size, "out_hidden_size": hidden_size}
        vision |= {"intermediate_size": 2 * hidden_size}
    if architecture == "qwen2_5_vl":
        vision |= {"window_size": 112, "fullatt_block_indexes": [vision_layers - 1]}
    if architecture == "qwen3_vl":
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
        text |= {"head_dim": head_dim, "rope_parameters": rope | {"mrope_interleaved": True}}
    return AutoConfig.for_model(
        architecture,
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        image_token_id=token_ids["<|image_pad|>"],
        video_token_id=token_ids["<|video_pad|>"],
        vision_start_token_id=token_ids["<|vision_start|>"],
        vision_end_token_id=token_ids["<|vision_end|>"],
    )


def _image_processor(architecture: Architecture) -> dict[str, Any]:
    least, most = (tokens * (MERGE_SIZE * PATCH_SIZE[architecture]) ** 2 for tokens in VISUAL_TOKENS)
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": PATCH_SIZE[architecture],
        "temporal_patch_size": 2,
        "merge_size": MERGE_SIZE,
        "size": {"shortest_edge": least, "longest_edge": most},  # areas in pixels, despite the names
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.25, 0.25, 0.25],
        "do_convert_rgb": True,
    }
