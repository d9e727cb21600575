"""The patches against transformers' own image processor."""

import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from sda_features.lvlm.backbone import MODEL_TYPES
from sda_features.lvlm.patches import Patcher
from tests.lvlm.conftest import MakeBackbone, picture


class Foreign(Qwen2VLImageProcessorPil):
    """A processor that comes with a checkpoint's own code."""


def assert_same(processor: object, size: tuple[int, int], dtype: torch.dtype = torch.float32) -> None:
    image = picture(0, size)
    expected = processor(images=[image], return_tensors="pt")
    patches, grid = Patcher(processor, dtype)(image)
    assert torch.equal(patches, expected["pixel_values"].to(dtype))
    assert torch.equal(grid, expected["image_grid_thw"][0])


@pytest.mark.parametrize("architecture", MODEL_TYPES)
@pytest.mark.parametrize("size", [(1, 1), (28, 28), (61, 250), (640, 480), (300, 6), (257, 255)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_are_those_of_the_processor(
    make_backbone: MakeBackbone, architecture: str, size: tuple[int, int], dtype: torch.dtype
) -> None:
    processor = make_backbone(architecture).image_processor
    assert type(processor) is Qwen2VLImageProcessorPil  # else both sides would be the same code
    assert_same(processor, size, dtype)


@pytest.mark.parametrize(
    "changes",
    [
        {"do_rescale": False},
        {"do_normalize": False},
        {"do_resize": False},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.9, 0.8, 0.7]},
        {"rescale_factor": 1 / 127.5},
        {"temporal_patch_size": 1, "merge_size": 1},
        {"resample": Image.Resampling.LANCZOS},
    ],
)
def test_its_settings_hold(changes: dict[str, object]) -> None:
    assert_same(Qwen2VLImageProcessorPil(**changes), (84, 112))


def test_foreign_code_is_run_as_it_is() -> None:
    assert_same(Foreign(image_mean=[0.1, 0.2, 0.3]), (100, 50), torch.bfloat16)
