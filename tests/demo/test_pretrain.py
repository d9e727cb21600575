"""After its schooling the base model orders each modality by itself, and still does not align them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sda_features.demo.catalogue import Catalogue, make_catalogue, text_fields
from sda_features.demo.factors import FACTORS
from sda_features.demo.model import build_tiny_model
from sda_features.demo.pretrain import _image_prompts, _text_prompts, pretrain
from sda_features.evaluation.neighbours import nearest, purity, unit_rows
from sda_features.evaluation.retrieval import recall_at_k
from sda_features.lvlm.backbone import Backbone, Prompt, mean_pool
from tests.shop import on_cpu

ITEMS = 200
NAMES = [factor.name for factor in FACTORS]


@dataclass(frozen=True)
class Schooled:
    shop: Catalogue
    text: NDArray[np.float32]
    image: NDArray[np.float32]
    right: dict[str, float]


@pytest.fixture(scope="module")
def schooled(tmp_path_factory: pytest.TempPathFactory) -> Schooled:
    """A smaller model and a shorter schooling than the demo's; vectors of products it never saw."""
    folder = tmp_path_factory.mktemp("model") / "model"
    shop = make_catalogue(ITEMS, seed=0, spoil=False)
    texts = ["; ".join(fields.values()) for fields in text_fields(shop)]
    build_tiny_model(folder, texts, hidden_size=64, layers=2, vocabulary=512)
    right = pretrain(folder, items=200, steps=60, learning_rate=5e-3)
    backbone = Backbone(on_cpu(folder, dtype="float32"))
    text = pooled(backbone, _text_prompts(backbone, shop), "text")
    image = pooled(backbone, _image_prompts(backbone, shop), "image")
    return Schooled(shop, text, image, right)


def pooled(backbone: Backbone, prompts: list[Prompt], modality: str) -> NDArray[np.float32]:
    """Centred unit vectors of mean-pooled states."""
    batch = backbone.collate(prompts, modality)
    with torch.inference_mode():
        return unit_rows(mean_pool(backbone.hidden_states(batch), batch.lengths).numpy())


def neighbours_alike(vectors: NDArray[np.float32], levels: NDArray[np.int64]) -> float:
    """Share of the 5 nearest neighbours that have the item's level, in units of that share by chance."""
    near = nearest(vectors, vectors, 5, own=range(len(vectors)))
    share, chance = purity(near, [f"level {level}" for level in levels])
    return share / chance


@pytest.mark.parametrize(
    ("modality", "factor"), [("text", "material"), ("text", "tier"), ("text", "shape"), ("image", "colour")]
)
def test_neighbours_share_what_their_modality_shows(schooled: Schooled, modality: str, factor: str) -> None:
    levels = schooled.shop.factors[:, NAMES.index(factor)]
    assert neighbours_alike(getattr(schooled, modality), levels) > 1.5


def test_a_picture_does_not_show_the_tier(schooled: Schooled) -> None:
    levels = schooled.shop.factors[:, NAMES.index("tier")]
    assert 0.8 < neighbours_alike(schooled.image, levels) < 1.2


def test_texts_do_not_find_their_pictures(schooled: Schooled) -> None:
    assert recall_at_k(schooled.text, schooled.image, 10) < 3 * 10 / ITEMS


def test_the_share_told_right_is_returned(schooled: Schooled) -> None:
    assert schooled.right["text"] > 0.6
    assert schooled.right["image"] > 0.3


def test_the_seed_decides_the_result(tmp_path: Path) -> None:
    results = []
    for name in ("first", "again"):
        build_tiny_model(tmp_path / name, ["mug", "mug"], hidden_size=64, layers=1, vision_layers=1)
        untaught = (tmp_path / name / "model.safetensors").read_bytes()
        pretrain(tmp_path / name, items=20, steps=2, batch_size=4)
        results.append((tmp_path / name / "model.safetensors").read_bytes())
        assert results[-1] != untaught
        assert (tmp_path / name / "tokenizer.json").is_file()
    assert results[0] == results[1]
