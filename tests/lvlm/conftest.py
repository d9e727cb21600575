"""Tiny real checkpoints of the three architectures, and what most tests of the encoder need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sda_features.config import AdapterSettings, ProjectionSettings, PromptSettings
from sda_features.demo.model import build_tiny_model
from sda_features.lvlm.backbone import Backbone, PromptBatch
from sda_features.lvlm.encoder import PromptEncoder
from tests.shop import on_cpu

TEXTS = [
    "title is red cotton shirt; brand is Oak",
    "title is steel kettle",
    "title is a very long walnut table",
]
ARCHITECTURES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
PROMPTS = PromptSettings()


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for architecture in ARCHITECTURES:
        build_tiny_model(folder / architecture, TEXTS, architecture=architecture, hidden_size=64, layers=2)
    return {architecture: folder / architecture for architecture in ARCHITECTURES}


@pytest.fixture
def make_backbone(tiny_models: dict[str, Path]) -> Callable[..., Backbone]:
    def make(architecture: str = "qwen2_5_vl", quantization: str = "none") -> Backbone:
        return Backbone(on_cpu(tiny_models[architecture], quantization=quantization))

    return make


@pytest.fixture
def make_encoder(make_backbone: Callable[..., Backbone]) -> Callable[..., PromptEncoder]:
    def make(
        architecture: str = "qwen2_5_vl", quantization: str = "none", **adapter: object
    ) -> PromptEncoder:
        return PromptEncoder(
            make_backbone(architecture, quantization), AdapterSettings.parse(**adapter), ProjectionSettings()
        )

    return make


def picture(seed: int, size: tuple[int, int] = (70, 56)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def text_batch(backbone: Backbone, count: int = 3) -> PromptBatch:
    return backbone.collate([backbone.text_tokens(TEXTS[i % 3] * (1 + i % 2)) for i in range(count)], "text")


def image_batch(backbone: Backbone, count: int = 3) -> PromptBatch:
    sizes = [(70, 56), (56, 84), (112, 56)]
    prompts = [backbone.image_tokens(picture(i, sizes[i % 3]), PROMPTS) for i in range(count)]
    return backbone.collate(prompts, "image")
