"""A checkpoint as stock PEFT adapters, one for each modality, and as merged models.

A gate depends on nothing but the modality, so for a fixed one MoDA is a LoRA (Eq. 7):

    B (g * (A x)) = (B diag(g)) A x

The exported B has the gate, and with it alpha / r, folded in; its LoRA has alpha = r, hence scaling 1.

output/
  text/ image/          adapter_config.json, adapter_model.safetensors, README.md
  projection.safetensors   with a trained projection: `weight` [d_m, hidden]
  merged/text/ merged/image/   with `merged`: whole models with tokenizer and image processor
"""

from __future__ import annotations

import re
import shutil
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from sda_features.artifacts import atomic_folder, check_folder
from sda_features.catalog.prompts import text_prompt
from sda_features.config import MODALITIES, AdapterSettings, AdaptSettings
from sda_features.errors import BackboneError, CheckpointError, foreign
from sda_features.lvlm.backbone import Backbone
from sda_features.lvlm.checkpoint import ADAPTER_FILE, LoadedEncoder, load_checkpoint, read_checkpoint
from sda_features.lvlm.moda import adapted_layers, expert_weights, rank_gates
from sda_features.lvlm.weights import locate
from sda_features.results import Result

Target = Literal["conditional-generation", "base"]

PROJECTION_FILE = "projection.safetensors"
MERGED = "merged"
PROCESSOR_SUFFIXES = (".json", ".jinja", ".txt")  # tokenizer, chat template, image processor
LOADER: dict[Target, str] = {"conditional-generation": "AutoModelForImageTextToText", "base": "AutoModel"}
# The model with a head holds the one without as `model`; PEFT puts its own prefix before both.
KEY_PREFIX: dict[Target, str] = {
    "conditional-generation": "base_model.model.model.",
    "base": "base_model.model.",
}


@dataclass(frozen=True)
class ExportResult(Result):
    """What `export` wrote.

    Attributes:
        adapters: modality -> folder of its PEFT adapter.
        merged: modality -> folder of its merged model; empty unless asked for.
        projection: file of the trained projection, or None.
        base_model: the model that the adapters load over.
    """

    adapters: dict[str, Path]
    merged: dict[str, Path]
    projection: Path | None
    base_model: str

    def __str__(self) -> str:
        lines = [f"base model  {self.base_model}"]
        lines += [f"{modality:<12}{folder}" for modality, folder in self.adapters.items()]
        lines += [f"projection  {self.projection}"] if self.projection else []
        return "\n".join([*lines, *(f"merged      {folder}" for folder in self.merged.values())])


def export_checkpoint(
    checkpoint: Path,
    output: Path,
    target: Target = "conditional-generation",
    *,
    model: str | None = None,
    trust_remote_code: bool = False,
    merged: bool = False,
    dtype: str = "auto",
) -> ExportResult:
    """Write a checkpoint as one LoRA adapter a modality; `output` appears whole or not at all.

    The adapters alone need no memory for the base model: its weights are hashed, not loaded.

    Args:
        output: folder to write; an earlier export there is replaced.
        target: the class that the adapters load over: "conditional-generation" is
            AutoModelForImageTextToText (vLLM and most tools), "base" AutoModel.
        model: base model, when it is not where it was in training.
        trust_remote_code: run Python code that ships with the base model.
        merged: also write the base model with each adapter merged into its weights.
        dtype: of merged weights; "auto" is the base model's own.

    Raises:
        CheckpointError: see `load_checkpoint`, or no adapter was trained.
        SettingsError: `output` holds other files than an export's.
    """
    check_folder(output, {*MODALITIES, PROJECTION_FILE, MERGED}, "an earlier export")
    moved: dict[str, Any] = {"trust_remote_code": trust_remote_code, **({"model": model} if model else {})}
    loaded = load_checkpoint(checkpoint, quantization="none", device="meta", **moved)
    stored = read_checkpoint(checkpoint)
    settings, manifest = stored.settings, stored.manifest
    if settings.adapter.kind == "none":
        raise CheckpointError(
            f"{checkpoint} trained a projection and no adapter (--adapter none): there is nothing to export as LoRA."
        )
    tensors = load_file(checkpoint / ADAPTER_FILE)
    layers = list(adapted_layers(loaded.encoder.model))
    backbone = loaded.encoder.backbone
    card = partial(_model_card, loaded, settings, manifest, target)
    with atomic_folder(output) as temporary:
        for modality in MODALITIES:
            folder = temporary / modality
            _lora_config(settings.adapter, backbone.settings.model).save_pretrained(str(folder))
            lora = modality_lora(tensors, layers, settings.adapter, modality)
            named = {KEY_PREFIX[target] + name: value.contiguous() for name, value in lora.items()}
            save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
            (folder / "README.md").write_text(card(modality, "peft"), encoding="utf-8")
            if merged:
                whole = temporary / MERGED / modality
                _write_merged(whole, folder, backbone, target, dtype)
                (whole / "README.md").write_text(card(modality, "transformers"), encoding="utf-8")
        if "projection.weight" in tensors:
            save_file({"weight": tensors["projection.weight"]}, temporary / PROJECTION_FILE)
    return ExportResult(
        {modality: output / modality for modality in MODALITIES},
        {modality: output / MERGED / modality for modality in MODALITIES} if merged else {},
        output / PROJECTION_FILE if "projection.weight" in tensors else None,
        backbone.settings.model,
    )


def modality_lora(
    tensors: dict[str, Tensor], layers: list[str], settings: AdapterSettings, modality: str
) -> dict[str, Tensor]:
    """The LoRA that the adapter is for one modality: A as trained, B diag(g) (module docstring).

    Args:
        tensors: a checkpoint's tensors: `{layer}.A` [r, d_in], `{layer}.B` [d_out, r], gates.
        layers: names of the adapted layers in the order of the gates.
        settings: kind, rank and alpha; a plain LoRA is returned as it is.

    Returns:
        `{layer}.lora_A.weight` and `{layer}.lora_B.weight`, in their trained dtype.
    """
    gates = torch.ones(len(layers), settings.rank)
    if settings.kind == "moda":
        weights = expert_weights(tensors["gates.embedding"], tensors["gates.weight"], tensors["gates.bias"])
        by_modality = rank_gates(weights, settings.rank, settings.alpha / settings.rank)
        gates = by_modality[:, MODALITIES.index(modality)]
    lora: dict[str, Tensor] = {}
    for layer, gate in zip(layers, gates, strict=True):
        up = tensors[f"{layer}.B"]
        lora[f"{layer}.lora_A.weight"] = tensors[f"{layer}.A"]
        lora[f"{layer}.lora_B.weight"] = (up * gate).to(up.dtype)
    return lora


def _lora_config(settings: AdapterSettings, base_model: str) -> LoraConfig:
    # One group at the end and none before it: vLLM reads the module names out of a pattern's last group.
    names = "|".join(map(re.escape, settings.target_modules))
    return LoraConfig(
        base_model_name_or_path=base_model,
        r=settings.rank,
        lora_alpha=settings.rank if settings.kind == "moda" else settings.alpha,
        target_modules=rf".*language_model\..*\.({names})",
        inference_mode=True,
    )


def _write_merged(folder: Path, adapter: Path, backbone: Backbone, target: Target, dtype: str) -> None:
    """Save the unquantised base model with `adapter` merged by PEFT, ready for `from_pretrained`."""
    as_dtype = dtype if dtype == "auto" else getattr(torch, dtype)
    with foreign(BackboneError, f"The weights of {backbone.settings.model} cannot be loaded"):
        base = getattr(transformers, LOADER[target]).from_pretrained(
            backbone.settings.model,
            dtype=as_dtype,
            use_safetensors=True,
            trust_remote_code=backbone.settings.trust_remote_code,
        )
    with warnings.catch_warnings():  # PEFT 0.21 asks transformers for a property under its old name
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        adapted = PeftModel.from_pretrained(base, str(adapter))
    adapted.merge_and_unload().save_pretrained(str(folder))
    saved = {path.name for path in folder.iterdir()}
    for path in locate(backbone.settings.model).iterdir():
        wanted = path.suffix in PROCESSOR_SUFFIXES and not path.name.endswith(".index.json")
        if wanted and path.name not in saved:
            shutil.copyfile(path, folder / path.name)


def _model_card(
    loaded: LoadedEncoder,
    settings: AdaptSettings,
    manifest: dict[str, Any],
    target: Target,
    modality: str,
    library: Literal["peft", "transformers"],
) -> str:
    """The README.md of an exported folder: what a user must repeat to get the same vectors."""
    backbone, prompts, projection = loaded.encoder.backbone, settings.prompts, settings.projection
    text = text_prompt({"<field>": "<value>", "<next field>": "<value>"}, prompts)
    content = [{"type": "text", "text": text if modality == "text" else prompts.image_instruction}]
    if modality == "image":
        content.insert(0, {"type": "image"})
    prompt = backbone.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    cut = {
        "text": f"field values cut at {prompts.max_field_chars} characters",
        "image": f"picture scaled to {prompts.max_image_side} pixels at most on its longest side",
    }
    projections = {
        "none": "none",
        "pooled": f"means of equal blocks, down to {projection.dim} values",
        "linear": f"`{PROJECTION_FILE}` of the export, `weight` [{projection.dim}, {backbone.hidden_size}]",
    }
    facts = {
        "vectors of": f"{modality} prompts only",
        "base model": f"{backbone.settings.model}, sha256 `{manifest['base_model']['sha256']}`",
        "loads with": LOADER[target],
        "made from": f"{settings.adapter.kind} checkpoint, adapter sha256 `{manifest['adapter_sha256']}`",
        "rank": str(settings.adapter.rank),
        "trained over": f"{settings.backbone.quantization.replace('none', 'unquantised')} weights",
        "input": cut[modality],
        "pooling": "mean of the last hidden state over all tokens of the prompt",
        "projection": projections[projection.kind],
        "normalisation": "L2" if loaded.normalize else "none",
        "vector version": f"`{loaded.version}`",
    }
    return "\n".join(
        [
            *("---", f"base_model: {backbone.settings.model}", f"library_name: {library}", "---", ""),
            f"# {modality.capitalize()} vectors of items\n",
            "Written by `sda-features export`.\n",
            *("| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())),
            *("\nPrompt:\n", "```text", prompt.rstrip("\n"), "```", ""),
        ]
    )
