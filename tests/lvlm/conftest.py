"""Tiny real checkpoints of the three architectures, and what most tests of the encoder need."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sda_features.config import AdapterSettings, ProjectionSettings, PromptSettings
from sda_features.demo.model import build_tiny_model
from sda_features.lvlm.backbone import Backbone, Prompt, PromptBatch
from sda_features.lvlm.encoder import PromptEncoder
from tests.shop import on_cpu

TEXTS = [
    "title is red cotton shirt; brand is Oak",
    "title is steel kettle",
    "title is a very long walnut table",
]
ARCHITECTURES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
PROMPTS = PromptSettings()

Models = dict[str, Path]  # by architecture
MakeBackbone = Callable[..., Backbone]
MakeEncoder = Callable[..., PromptEncoder]


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for architecture in ARCHITECTURES:
        build_tiny_model(folder / architecture, TEXTS, architecture=architecture, hidden_size=64, layers=2)
    return {architecture: folder / architecture for architecture in ARCHITECTURES}


@pytest.fixture(scope="session")
def tiny_model(tiny_models: Models) -> Path:
    """The one for tests that hold for any architecture."""
    return tiny_models["qwen2_5_vl"]


@pytest.fixture(scope="session")
def make_backbone(tiny_models: Models) -> MakeBackbone:
    def make(architecture: str = "qwen2_5_vl", quantization: str = "none") -> Backbone:
        return Backbone(on_cpu(tiny_models[architecture], quantization=quantization))

    return make


@pytest.fixture(scope="session")
def make_encoder(make_backbone: MakeBackbone) -> MakeEncoder:
    def make(
        architecture: str = "qwen2_5_vl", quantization: str = "none", **adapter: object
    ) -> PromptEncoder:
        backbone = make_backbone(architecture, quantization)
        return PromptEncoder(backbone, AdapterSettings.parse(**adapter), ProjectionSettings())

    return make


def randomise(encoder: PromptEncoder) -> PromptEncoder:
    """Give B values, as training would: at B = 0 most properties hold vacuously."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in encoder.trainable().items():
            if name.endswith(".B"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return encoder


def picture(seed: int, size: tuple[int, int] = (70, 56)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def text_prompts(backbone: Backbone) -> list[Prompt]:
    return [backbone.text_tokens(text * (1 + i % 2)) for i, text in enumerate(TEXTS)]


def image_prompts(backbone: Backbone, count: int = 3) -> list[Prompt]:
    sizes = [(70, 56), (56, 84), (112, 56)]
    return [backbone.image_tokens(picture(i, sizes[i % 3]), PROMPTS) for i in range(count)]


def text_batch(backbone: Backbone) -> PromptBatch:
    return backbone.collate(text_prompts(backbone), "text")


def image_batch(backbone: Backbone, count: int = 3) -> PromptBatch:
    return backbone.collate(image_prompts(backbone, count), "image")
