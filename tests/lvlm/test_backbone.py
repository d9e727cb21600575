import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from sda_features.config import BackboneSettings
from sda_features.errors import BackboneError
from sda_features.lvlm.backbone import Backbone, Prompt, mean_pool
from sda_features.lvlm.loading import pick_dtype
from tests.lvlm.conftest import (
    ARCHITECTURES,
    PROMPTS,
    MakeBackbone,
    MakeEncoder,
    image_prompts,
    picture,
    text_prompts,
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("modality", "make_prompts"), [("text", text_prompts), ("image", image_prompts)])
def test_padding_does_not_change_a_vector(
    make_encoder: MakeEncoder, architecture: str, modality: str, make_prompts: Callable[..., list[Prompt]]
) -> None:
    encoder = make_encoder(architecture, kind="none").eval()
    prompts = make_prompts(encoder.backbone)
    assert len({len(prompt.token_ids) for prompt in prompts}) > 1, "vacuous: no row is padded"
    with torch.no_grad():
        together = encoder(encoder.backbone.collate(prompts, modality))
        for row, prompt in zip(together, prompts, strict=True):
            alone = encoder(encoder.backbone.collate([prompt], modality))[0]
            torch.testing.assert_close(alone, row, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_picture_changes_the_vector(make_encoder: MakeEncoder, architecture: str) -> None:
    encoder = make_encoder(architecture, kind="none").eval()
    prompts = [encoder.backbone.image_tokens(picture(seed), PROMPTS) for seed in (1, 2)]
    with torch.no_grad():
        first, second = encoder(encoder.backbone.collate(prompts, "image"))
    assert (first - second).abs().max() > 1e-4


def test_mean_pool_ignores_what_lies_past_the_length() -> None:
    states = torch.arange(12.0).reshape(2, 3, 2)
    pooled = mean_pool(states[:1, :2], torch.tensor([2]))
    assert pooled.tolist() == [[1.0, 2.0]]
    states[0, 2] = 1e30
    torch.testing.assert_close(mean_pool(states, torch.tensor([2, 3]))[0], torch.tensor([1.0, 2.0]))


def test_the_vision_tower_stays_unquantised(make_backbone: MakeBackbone) -> None:
    modules = make_backbone(quantization="nf4").model.named_modules()
    kinds = {(name.split(".")[0], type(module).__name__) for name, module in modules}
    linear = {(part, kind) for part, kind in kinds if "Linear" in kind}
    assert linear == {("visual", "Linear"), ("language_model", "Linear4bit")}


def test_fingerprint_follows_the_weights_not_the_quantisation(make_backbone: MakeBackbone) -> None:
    assert make_backbone().fingerprint() == make_backbone(quantization="nf4").fingerprint()
    assert make_backbone().fingerprint() != make_backbone("qwen2_vl").fingerprint()


def test_a_very_thin_picture_is_padded_not_refused(make_backbone: MakeBackbone) -> None:
    assert make_backbone().image_tokens(Image.new("RGB", (900, 2)), PROMPTS).grid is not None


def test_missing_model_is_one_clear_error() -> None:
    with pytest.raises(BackboneError, match="No model at '/nowhere'.*folder with config.json"):
        Backbone(BackboneSettings.parse(model="/nowhere"))


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(BackboneError, match="'bert' model; expected one of qwen2_vl, qwen2_5_vl, qwen3_vl"):
        Backbone(BackboneSettings.parse(model=str(tmp_path)))


def test_only_fast_takes_bfloat16_on_a_cpu_and_only_where_the_cpu_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for has_it, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has_it=has_it: has_it)
        assert pick_dtype("fast", cpu) is expected
        assert pick_dtype("auto", cpu) is torch.float32
        assert pick_dtype("bfloat16", cpu) is torch.bfloat16
