"""Tiny checkpoints load through transformers' own Auto classes, offline, for each architecture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from sda_features.demo.model import CONTROL_TOKENS, PATCH_SIZE, Architecture, build_tiny_model
from sda_features.errors import SettingsError

TEXTS = [
    "title is Halden slim oak mug; brand is Halden",
    "title is Ostra wide steel lamp; brand is Ostra",
] * 4
SMALL: dict[str, Any] = {"hidden_size": 64, "layers": 2, "vision_layers": 1, "vocabulary": 300}
ARCHITECTURES = tuple(PATCH_SIZE)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / str(request.param)
    build_tiny_model(folder, TEXTS, architecture=request.param, **SMALL)
    return folder


def picture_inputs(folder: Path, side: int = 84) -> dict[str, torch.Tensor]:
    """One chat turn with one picture, by hand from tokenizer and image processor."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    made = processor(images=[Image.fromarray(pixels)], return_tensors="pt")
    content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    visual_tokens = int(made["image_grid_thw"].prod()) // processor.merge_size**2
    prompt = prompt.replace("<|image_pad|>", "<|image_pad|>" * visual_tokens)
    input_ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    return {
        "input_ids": input_ids,
        "mm_token_type_ids": (input_ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int(),
        "pixel_values": made["pixel_values"],
        "image_grid_thw": made["image_grid_thw"],
    }


@pytest.mark.parametrize("nf4", [False, True])
def test_a_picture_and_a_text_go_through_the_base_model(checkpoint: Path, nf4: bool) -> None:
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4") if nf4 else None
    model = AutoModel.from_pretrained(checkpoint, dtype=torch.float32, quantization_config=quantization)
    inputs = picture_inputs(checkpoint)
    with torch.inference_mode():
        states = model(**inputs).last_hidden_state
        other = model(**{**inputs, "pixel_values": inputs["pixel_values"].flip(0)}).last_hidden_state
    assert states.shape == (1, inputs["input_ids"].shape[1], SMALL["hidden_size"])
    assert torch.isfinite(states).all()
    assert not torch.equal(states, other)  # the picture is seen
    assert any(type(module).__name__ == "Linear4bit" for module in model.modules()) is nf4


def test_the_language_model_head_is_tied_and_loads(checkpoint: Path) -> None:
    model, report = AutoModelForImageTextToText.from_pretrained(checkpoint, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert not list(checkpoint.glob("*.bin"))


def test_loading_needs_no_torchvision(checkpoint: Path) -> None:
    picture_inputs(checkpoint)
    assert "torchvision" not in sys.modules


def test_the_chat_template_and_the_tokenizer_keep_control_tokens_whole(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    content = [{"type": "image"}, {"type": "text", "text": "Größe?"}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Größe?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    token_ids = tokenizer(prompt)["input_ids"]
    assert tokenizer.decode(token_ids) == prompt
    assert [tokenizer.decode([token_id]) for token_id in token_ids if token_id < len(CONTROL_TOKENS)] == [
        *("<|im_start|>", "<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|image_pad|>"),
        *("<|vision_end|>", "<|im_end|>", "<|im_start|>"),
    ]
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")


def test_a_picture_has_at_most_nine_visual_tokens(checkpoint: Path) -> None:
    for side in (20, 84, 400):
        assert 4 <= int(picture_inputs(checkpoint, side)["mm_token_type_ids"].sum()) <= 9


def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        build_tiny_model(tmp_path / name, TEXTS, seed=seed, **SMALL)
    assert torch.equal(torch.random.get_rng_state(), before)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert "model.safetensors" in files
    assert "tokenizer.json" in files
    for name in files:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "other")]
    assert weights[0] != weights[1]


def test_the_demo_size_has_one_to_four_million_parameters(tmp_path: Path) -> None:
    build_tiny_model(tmp_path / "model", TEXTS)
    assert 1e6 < (tmp_path / "model" / "model.safetensors").stat().st_size / 4 < 4e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 96}, "multiple of 64"),
        ({"layers": 0}, "at least one layer"),
        ({"vocabulary": 100}, "264 vocabulary entries"),
        ({"architecture": "llava"}, "Unknown architecture 'llava'; expected one of qwen2_vl"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=message):
        build_tiny_model(tmp_path / "model", TEXTS, **{**SMALL, **change})
    assert not list(tmp_path.iterdir())


def test_architectures_are_those_the_type_names() -> None:
    assert set(ARCHITECTURES) == set(Architecture.__args__)  # type: ignore[attr-defined]
