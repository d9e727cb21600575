"""Exported adapters and merged models give the vectors of the checkpoint they come from."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from sda_features.cli.make import export as command
from sda_features.config import (
    AdapterSettings,
    AdaptSettings,
    PromptSettings,
)
from sda_features.errors import CheckpointError, SettingsError
from sda_features.lvlm.backbone import Backbone, PromptBatch
from sda_features.lvlm.checkpoint import load_checkpoint, save_checkpoint, unadapted
from sda_features.lvlm.encoder import PromptEncoder
from sda_features.lvlm.export import LOADER, export_checkpoint, modality_lora
from sda_features.lvlm.moda import MODALITIES
from tests.lvlm.conftest import ARCHITECTURES, image_batch, text_batch
from tests.lvlm.test_moda import randomise
from tests.reference.moda import expert_loop
from tests.shop import on_cpu

MAKE_BATCH = {"text": text_batch, "image": image_batch}
pytestmark = pytest.mark.filterwarnings(  # asked for by PEFT 0.21, deprecated in transformers 5.23
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


def write_checkpoint(
    folder: Path, model: Path, projection: dict[str, Any] | None = None, **adapter: Any
) -> Path:
    """A checkpoint as `adapt` leaves it, B and gates far from their start."""
    torch.manual_seed(0)
    settings = AdaptSettings.parse(
        catalog={"path": "items.parquet"},
        backbone={"model": str(model), "quantization": "none", "device": "cpu"},
        adapter=adapter,
        projection=projection or {},
    )
    encoder = PromptEncoder(Backbone(settings.backbone), settings.adapter, settings.projection)
    randomise(encoder)
    save_checkpoint(folder, encoder, settings, {})
    return folder


@pytest.fixture
def make_checkpoint(tmp_path: Path, tiny_models: dict[str, Path]) -> Callable[..., Path]:
    def make(architecture: str = "qwen2_5_vl", **settings: Any) -> Path:
        return write_checkpoint(tmp_path / "checkpoint", tiny_models[architecture], **settings)

    return make


def load(target: str, model: object) -> nn.Module:
    return getattr(transformers, LOADER[target]).from_pretrained(model, dtype=torch.float32)  # type: ignore[index, no-any-return]


def embed(model: nn.Module, batch: PromptBatch) -> Tensor:
    """Mean-pooled last hidden states, as docs/export.md tells users to compute them."""
    mask = torch.arange(batch.input_ids.shape[1]) < batch.lengths[:, None]
    vision: dict[str, Any] = {}
    if batch.patches is not None:
        token_types = (batch.input_ids == model.config.image_token_id).int()
        vision = {
            "pixel_values": batch.patches,
            "image_grid_thw": batch.grids,
            "mm_token_type_ids": token_types,
        }
    with torch.inference_mode():
        output = model(
            input_ids=batch.input_ids, attention_mask=mask.long(), output_hidden_states=True, **vision
        )
    return (output.hidden_states[-1] * mask[..., None]).sum(1) / batch.lengths[:, None]


def distance(first: Tensor, second: Tensor) -> float:
    return (first - second).abs().max().item()


@pytest.mark.parametrize("target", LOADER)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_stock_peft_gives_the_vectors_of_the_checkpoint(
    make_checkpoint: Callable[..., Path],
    tiny_models: dict[str, Path],
    tmp_path: Path,
    architecture: str,
    target: Any,
) -> None:
    checkpoint = make_checkpoint(architecture)
    result = export_checkpoint(checkpoint, tmp_path / "export", target)
    encoder = load_checkpoint(checkpoint).encoder
    for modality, make_batch in MAKE_BATCH.items():
        batch = make_batch(encoder.backbone)
        with torch.inference_mode():
            expected = encoder(batch)
        base = load(target, tiny_models[architecture])
        assert distance(embed(base, batch), expected) > 0.01, "vacuous: the adapter does nothing"
        model = PeftModel.from_pretrained(base, str(result.adapters[modality]))
        assert all("visual" not in name for name in model.base_model.targeted_module_names)
        assert distance(embed(model, batch), expected) < 1e-5
        model.load_adapter(str(result.adapters["image" if modality == "text" else "text"]), "other")
        model.set_adapter("other")
        assert distance(embed(model, batch), expected) > 1e-3, "vacuous: both adapters are alike"


def test_an_adapter_for_the_model_with_a_head_loads_over_the_one_without(
    make_checkpoint: Callable[..., Path], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """The two recipes of docs/export.md by which one export serves both classes."""
    checkpoint = make_checkpoint()
    folder = str(export_checkpoint(checkpoint, tmp_path / "export").adapters["image"])
    encoder = load_checkpoint(checkpoint).encoder
    batch = image_batch(encoder.backbone)
    mapped = PeftModel.from_pretrained(
        load("base", tiny_models["qwen2_5_vl"]), folder, key_mapping={r"^model\.": ""}
    )
    through_transformers = load("base", tiny_models["qwen2_5_vl"])
    through_transformers.load_adapter(folder)  # type: ignore[operator]
    with torch.inference_mode():
        expected = encoder(batch)
    assert distance(embed(mapped, batch), expected) < 1e-5
    assert distance(embed(through_transformers, batch), expected) < 1e-5


@pytest.mark.parametrize(
    ("architecture", "target"), [("qwen2_5_vl", "conditional-generation"), ("qwen3_vl", "base")]
)
def test_merged_models_give_the_vectors_of_the_checkpoint(
    make_checkpoint: Callable[..., Path], tmp_path: Path, architecture: str, target: Any
) -> None:
    checkpoint = make_checkpoint(architecture)
    result = export_checkpoint(checkpoint, tmp_path / "export", target, merged=True, dtype="float32")
    adapted = load_checkpoint(checkpoint).encoder
    for modality, make_batch in MAKE_BATCH.items():
        merged = unadapted(on_cpu(result.merged[modality]), PromptSettings()).encoder
        batch, again = make_batch(adapted.backbone), make_batch(merged.backbone)
        assert torch.equal(batch.input_ids, again.input_ids)
        with torch.inference_mode():
            assert distance(merged(again), adapted(batch)) < 1e-4
        assert "library_name: transformers" in (result.merged[modality] / "README.md").read_text()


def test_merged_weights_have_the_dtype_asked_for(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    result = export_checkpoint(make_checkpoint(), tmp_path / "export", merged=True, dtype="bfloat16")
    tensors = load_file(result.merged["text"] / "model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}


def test_the_exported_factors_equal_the_sum_over_experts() -> None:
    torch.manual_seed(0)
    settings = AdapterSettings.parse(rank=6, experts=3, alpha=12)
    tensors = {
        "a.A": torch.randn(6, 5),
        "a.B": torch.randn(7, 6),
        "b.A": torch.randn(6, 4),
        "b.B": torch.randn(3, 6),
        "gates.embedding": torch.randn(2, 8),
        "gates.weight": torch.randn(2, 3, 8),
        "gates.bias": torch.randn(2, 3),
    }
    for position, modality in enumerate(MODALITIES):
        lora = modality_lora(tensors, ["a", "b"], settings, modality)
        for layer, name in enumerate("ab"):
            up, down = lora[f"{name}.lora_B.weight"], lora[f"{name}.lora_A.weight"]
            x = torch.randn(2, 3, down.shape[1])
            expected = expert_loop(
                x,
                tensors[f"{name}.A"],
                tensors[f"{name}.B"],
                tensors["gates.embedding"][position],
                tensors["gates.weight"][layer],
                tensors["gates.bias"][layer],
                alpha=12.0,
            )
            torch.testing.assert_close(x @ down.T @ up.T, expected)


def test_a_plain_lora_is_exported_as_it_is(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = make_checkpoint(kind="lora", rank=4, alpha=10)
    result = export_checkpoint(checkpoint, tmp_path / "export")
    trained = load_file(checkpoint / "adapter.safetensors")
    for folder in result.adapters.values():
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == (4, 10)
        exported = load_file(folder / "adapter_model.safetensors")
        assert len(exported) == len(trained)
        for name, value in trained.items():
            layer, factor = name.rsplit(".", 1)
            assert torch.equal(exported[f"base_model.model.model.{layer}.lora_{factor}.weight"], value)


def test_the_trained_projection_lies_beside_the_adapters(
    make_checkpoint: Callable[..., Path], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(projection={"kind": "linear", "dim": 5})
    result = export_checkpoint(checkpoint, tmp_path / "export", "base")
    assert result.projection is not None
    weight = load_file(result.projection)["weight"]
    encoder = load_checkpoint(checkpoint).encoder
    batch = text_batch(encoder.backbone)
    model = PeftModel.from_pretrained(load("base", tiny_models["qwen2_5_vl"]), str(result.adapters["text"]))
    with torch.inference_mode():
        assert distance(embed(model, batch) @ weight.T, encoder(batch)) < 1e-5
    card = (result.adapters["text"] / "README.md").read_text()
    assert "`projection.safetensors` of the export, `weight` [5, 64]" in card


def test_card_and_config_say_what_a_user_needs(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = make_checkpoint(target_modules=("q_proj", "v_proj"))
    result = export_checkpoint(checkpoint, tmp_path / "export")
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    card = (result.adapters["image"] / "README.md").read_text()
    assert manifest["base_model"]["sha256"] in card
    assert manifest["adapter_sha256"] in card
    assert load_checkpoint(checkpoint).version in card
    assert "<|image_pad|><|vision_end|>Summarize the item in the picture.<|im_end|>" in card
    text_card = (result.adapters["text"] / "README.md").read_text()
    assert "Summarize the following item.\n<field> is <value>; <next field> is <value><|im_end|>" in text_card
    config = json.loads((result.adapters["text"] / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"] == 8
    names = re.search(r"\((.*?)\)\$?$", config["target_modules"])  # how vLLM reads a pattern
    assert names is not None
    assert names[1].split("|") == ["q_proj", "v_proj"]


def test_a_failed_export_leaves_the_earlier_one(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint, output = make_checkpoint(), tmp_path / "here" / "export"
    export_checkpoint(checkpoint, output)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with pytest.raises(AttributeError):
        export_checkpoint(checkpoint, output, "base", merged=True, dtype="no_such_dtype")
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    assert [path.name for path in output.parent.iterdir()] == ["export"]


def test_a_folder_with_other_files_is_not_replaced(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(SettingsError, match="exists and is not an earlier export"):
        export_checkpoint(make_checkpoint(), tmp_path / "home")
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"


def test_a_checkpoint_without_an_adapter_is_refused(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(kind="none", projection={"kind": "linear", "dim": 5})
    with pytest.raises(CheckpointError, match="nothing to export as LoRA"):
        export_checkpoint(checkpoint, tmp_path / "export")


def test_what_is_no_checkpoint_or_has_another_base_model_is_refused(
    make_checkpoint: Callable[..., Path], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        export_checkpoint(tmp_path, tmp_path / "export")
    with pytest.raises(CheckpointError, match="Give the right one with --model"):
        export_checkpoint(make_checkpoint(), tmp_path / "export", model=str(tiny_models["qwen2_vl"]))
    assert not (tmp_path / "export").exists()


def test_the_command_prints_where_things_are(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    output = tmp_path / "export"
    arguments = [str(make_checkpoint()), "--output", str(output)]
    done = CliRunner().invoke(command, [*arguments, "--for", "base", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert found["adapters"] == {"text": str(output / "text"), "image": str(output / "image")}
    assert (found["merged"], found["projection"]) == ({}, None)
    done = CliRunner().invoke(command, [*arguments, "--merged"])
    assert done.exit_code == 0, done.output
    assert f"merged      {output / 'merged' / 'image'}" in done.output
