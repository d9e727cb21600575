"""Exported adapters and merged models give the vectors of the checkpoint they come from."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from sda_features.config import AdapterSettings, AdaptSettings, PromptSettings
from sda_features.errors import CheckpointError, SettingsError
from sda_features.lvlm.backbone import Backbone, PromptBatch
from sda_features.lvlm.checkpoint import load_checkpoint, save_checkpoint, unadapted
from sda_features.lvlm.encoder import PromptEncoder
from sda_features.lvlm.export import LOADER, export_checkpoint, modality_lora
from sda_features.lvlm.moda import MODALITIES
from tests.lvlm.conftest import ARCHITECTURES, Models, image_batch, randomise, text_batch
from tests.reference.moda import expert_loop
from tests.shop import on_cpu, run

MakeCheckpoint = Callable[..., Path]
MAKE_BATCH = {"text": text_batch, "image": image_batch}
pytestmark = pytest.mark.filterwarnings(  # asked for by PEFT 0.21, deprecated in transformers 5.23
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


def write_checkpoint(folder: Path, model: Path, **settings: dict[str, Any]) -> Path:
    """A checkpoint as `adapt` leaves it, B and gates far from their start."""
    torch.manual_seed(0)
    chosen = AdaptSettings.parse(catalog={"path": "items.parquet"}, backbone=on_cpu(model), **settings)
    encoder = PromptEncoder(Backbone(chosen.backbone), chosen.adapter, chosen.projection)
    save_checkpoint(folder, randomise(encoder), chosen, {})
    return folder


@pytest.fixture
def make_checkpoint(tmp_path: Path, tiny_models: Models) -> MakeCheckpoint:
    def make(architecture: str = "qwen2_5_vl", **settings: dict[str, Any]) -> Path:
        return write_checkpoint(tmp_path / "checkpoint", tiny_models[architecture], **settings)

    return make


def load(target: str, model: Path) -> nn.Module:
    return getattr(transformers, LOADER[target]).from_pretrained(model, dtype=torch.float32)


def encoded(checkpoint: Path, modality: str) -> tuple[PromptBatch, Tensor]:
    """A batch and the vectors of the checkpoint for it."""
    encoder = load_checkpoint(checkpoint).encoder
    batch = MAKE_BATCH[modality](encoder.backbone)
    with torch.inference_mode():
        return batch, encoder(batch)


def embed(model: nn.Module, batch: PromptBatch) -> Tensor:
    """Mean-pooled last hidden states, as docs/export.md tells users to compute them."""
    mask = torch.arange(batch.input_ids.shape[1]) < batch.lengths[:, None]
    vision: dict[str, Any] = {}
    if batch.patches is not None:
        vision = {
            "pixel_values": batch.patches,
            "image_grid_thw": batch.grids,
            "mm_token_type_ids": (batch.input_ids == model.config.image_token_id).int(),
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
    make_checkpoint: MakeCheckpoint, tiny_models: Models, tmp_path: Path, architecture: str, target: Any
) -> None:
    checkpoint = make_checkpoint(architecture)
    adapters = export_checkpoint(checkpoint, tmp_path / "export", target).adapters
    for modality, other in (("text", "image"), ("image", "text")):
        batch, expected = encoded(checkpoint, modality)
        base = load(target, tiny_models[architecture])
        assert distance(embed(base, batch), expected) > 0.01, "vacuous: the adapter does nothing"
        model = PeftModel.from_pretrained(base, str(adapters[modality]))
        assert all("visual" not in name for name in model.base_model.targeted_module_names)
        assert distance(embed(model, batch), expected) < 1e-5
        model.load_adapter(str(adapters[other]), "other")
        model.set_adapter("other")
        assert distance(embed(model, batch), expected) > 1e-3, "vacuous: both adapters are alike"


def test_an_adapter_for_the_model_with_a_head_loads_over_the_one_without(
    make_checkpoint: MakeCheckpoint, tiny_model: Path, tmp_path: Path
) -> None:
    """The two recipes of docs/export.md by which one export serves both classes."""
    checkpoint = make_checkpoint()
    folder = str(export_checkpoint(checkpoint, tmp_path / "export").adapters["image"])
    batch, expected = encoded(checkpoint, "image")
    mapped = PeftModel.from_pretrained(load("base", tiny_model), folder, key_mapping={r"^model\.": ""})
    through_transformers = load("base", tiny_model)
    through_transformers.load_adapter(folder)
    assert distance(embed(mapped, batch), expected) < 1e-5
    assert distance(embed(through_transformers, batch), expected) < 1e-5


@pytest.mark.parametrize(
    ("architecture", "target"), [("qwen2_5_vl", "conditional-generation"), ("qwen3_vl", "base")]
)
def test_merged_models_give_the_vectors_of_the_checkpoint(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, architecture: str, target: Any
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


def test_merged_weights_have_the_dtype_asked_for(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
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
            expected = expert_loop(x, tensors, name, layer, position, alpha=12.0)
            torch.testing.assert_close(x @ down.T @ up.T, expected)


def test_a_plain_lora_is_exported_as_it_is(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(adapter={"kind": "lora", "rank": 4, "alpha": 10})
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
    make_checkpoint: MakeCheckpoint, tiny_model: Path, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(projection={"kind": "linear", "dim": 5})
    result = export_checkpoint(checkpoint, tmp_path / "export", "base")
    weight = load_file(result.projection)["weight"]
    batch, expected = encoded(checkpoint, "text")
    model = PeftModel.from_pretrained(load("base", tiny_model), str(result.adapters["text"]))
    assert distance(embed(model, batch) @ weight.T, expected) < 1e-5
    card = (result.adapters["text"] / "README.md").read_text()
    assert "`projection.safetensors` of the export, `weight` [5, 64]" in card


def test_card_and_config_say_what_a_user_needs(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(adapter={"target_modules": ("q_proj", "v_proj")})
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
    assert names[1].split("|") == ["q_proj", "v_proj"]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_failed_export_leaves_the_earlier_one(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint, output = make_checkpoint(), tmp_path / "here" / "export"
    export_checkpoint(checkpoint, output)
    before = contents(output)
    with pytest.raises(AttributeError):
        export_checkpoint(checkpoint, output, "base", merged=True, dtype="no_such_dtype")
    assert contents(output) == before
    assert [path.name for path in output.parent.iterdir()] == ["export"]


def test_a_folder_with_other_files_is_not_replaced(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    thesis = tmp_path / "home" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    with pytest.raises(SettingsError, match="exists and is not an earlier export"):
        export_checkpoint(make_checkpoint(), thesis.parent)
    assert thesis.read_text() == "years of work"


def test_a_checkpoint_without_an_adapter_is_refused(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(adapter={"kind": "none"}, projection={"kind": "linear", "dim": 5})
    with pytest.raises(CheckpointError, match="nothing to export as LoRA"):
        export_checkpoint(checkpoint, tmp_path / "export")


def test_what_is_no_checkpoint_or_has_another_base_model_is_refused(
    make_checkpoint: MakeCheckpoint, tiny_models: Models, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        export_checkpoint(tmp_path, tmp_path / "export")
    with pytest.raises(CheckpointError, match="Give the right one with --model"):
        export_checkpoint(make_checkpoint(), tmp_path / "export", model=str(tiny_models["qwen2_vl"]))
    assert not (tmp_path / "export").exists()


def test_the_command_prints_where_things_are(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    output = tmp_path / "export"
    arguments = ["export", make_checkpoint(), "--output", output]
    found = json.loads(run(*arguments, "--for", "base", "--json"))
    assert found["adapters"] == {"text": str(output / "text"), "image": str(output / "image")}
    assert (found["merged"], found["projection"]) == ({}, None)
    assert f"merged      {output / 'merged' / 'image'}" in run(*arguments, "--merged")
