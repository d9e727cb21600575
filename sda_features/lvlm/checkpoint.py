"""Checkpoint folders: what adapts a base model, and proof of which base model and data it belongs to.

adapter.safetensors   LoRA factors, gates, projection
settings.json         AdaptSettings: adapter, loss, prompts, projection, ...
preprocessing.json    chat template, vocabulary hash, image processor
manifest.json         hashes of base model and data, package versions, last metrics
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sda_features import __version__
from sda_features.artifacts import atomic_folder, sha256_files, sha256_json, write_json
from sda_features.config import (
    AdapterSettings,
    AdaptSettings,
    BackboneSettings,
    ProjectionSettings,
    PromptSettings,
)
from sda_features.errors import CheckpointError
from sda_features.lvlm.backbone import Backbone
from sda_features.lvlm.encoder import PromptEncoder
from sda_features.lvlm.model_card import checkpoint_card

FORMAT = 1
ADAPTER_FILE, SETTINGS_FILE = "adapter.safetensors", "settings.json"
PREPROCESSING_FILE, MANIFEST_FILE = "preprocessing.json", "manifest.json"
CARD_FILE = "README.md"


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder ready for inference and what its vectors depend on.

    Attributes:
        encoder: in eval mode.
        prompts: the prompt settings that belong to the weights.
        normalize: whether vectors are L2-normalised, as they were in training.
        version: 12 hex digits over adapter, base model, quantisation and preprocessing.
    """

    encoder: PromptEncoder
    prompts: PromptSettings
    normalize: bool
    version: str


def save_checkpoint(
    folder: Path, encoder: PromptEncoder, settings: AdaptSettings, manifest: dict[str, Any]
) -> None:
    """Write a complete checkpoint to `folder`, atomically; an older one there is replaced.

    Args:
        manifest: what the run knows beyond the settings, e.g. data hash and metrics.
    """
    backbone = encoder.backbone
    tensors = {name: value.detach().cpu().contiguous() for name, value in encoder.trainable().items()}
    with atomic_folder(folder) as temporary:
        save_file(tensors, temporary / ADAPTER_FILE)
        write_json(temporary / SETTINGS_FILE, settings.model_dump(mode="json"))
        write_json(temporary / PREPROCESSING_FILE, backbone.preprocessing())
        packages = ("torch", "transformers", "peft", "bitsandbytes")
        complete = {
            "format": FORMAT,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "sda_features": __version__,
            "packages": {name: package_version(name) for name in packages},
            "base_model": {"name": backbone.settings.model, "sha256": backbone.fingerprint()},
            "adapter_sha256": sha256_files([temporary / ADAPTER_FILE]),
            **manifest,
        }
        write_json(temporary / MANIFEST_FILE, complete)
        (temporary / CARD_FILE).write_text(checkpoint_card(settings, complete), encoding="utf-8")


def load_checkpoint(folder: Path, **overrides: Any) -> LoadedEncoder:
    """Load a checkpoint over its base model.

    Args:
        folder: a folder that `adapt` wrote.
        overrides: backbone settings other than those of training: `model` when the base model
            moved, `quantization`, `dtype`, `device`.

    Raises:
        CheckpointError: incomplete or damaged, or the base model's weights or preprocessing differ.
    """
    settings = _read(folder, SETTINGS_FILE, lambda text: AdaptSettings.model_validate_json(text))
    manifest = _read(folder, MANIFEST_FILE, json.loads)
    preprocessing = _read(folder, PREPROCESSING_FILE, json.loads)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} has checkpoint format {manifest.get('format')!r}; this version reads format {FORMAT}."
        )
    if sha256_files([folder / ADAPTER_FILE]) != manifest["adapter_sha256"]:
        raise CheckpointError(
            f"{folder / ADAPTER_FILE} does not match the hash in {MANIFEST_FILE}; copy it again."
        )
    backbone = Backbone(BackboneSettings.parse(**{**settings.backbone.model_dump(), **overrides}))
    expected, found = manifest["base_model"], backbone.fingerprint()
    if found != expected["sha256"]:
        raise CheckpointError(
            f"{folder} adapts the base model {expected['name']} (sha256 {expected['sha256'][:12]}), but "
            f"{backbone.settings.model} has sha256 {found[:12]}. Give the right one with --model, or adapt again."
        )
    if backbone.preprocessing() != preprocessing:
        raise CheckpointError(
            f"The tokenizer, chat template or image processor of {backbone.settings.model} is not the one that "
            f"{folder} was trained with ({PREPROCESSING_FILE}); restore it, or adapt again."
        )
    encoder = PromptEncoder(backbone, settings.adapter, settings.projection)
    _load_weights(encoder, folder)
    return LoadedEncoder(
        encoder.eval(),
        settings.prompts,
        settings.loss.normalize,
        _version(backbone, settings.prompts, settings.loss.normalize, manifest["adapter_sha256"]),
    )


def unadapted(settings: BackboneSettings, prompts: PromptSettings) -> LoadedEncoder:
    """The base model itself as an encoder: the "vanilla" vectors that the paper calls QwenVL."""
    encoder = PromptEncoder(Backbone(settings), AdapterSettings(kind="none"), ProjectionSettings(kind="none"))
    return LoadedEncoder(encoder.eval(), prompts, True, _version(encoder.backbone, prompts, True, None))


def _version(backbone: Backbone, prompts: PromptSettings, normalize: bool, adapter: str | None) -> str:
    parts = {
        "adapter": adapter,
        "base": backbone.fingerprint(),
        "quantization": backbone.settings.quantization,
        "preprocessing": backbone.preprocessing(),
        "prompts": prompts.model_dump(),
        "normalize": normalize,
    }
    return sha256_json(parts)[:12]


def _load_weights(encoder: PromptEncoder, folder: Path) -> None:
    tensors, parameters = load_file(folder / ADAPTER_FILE), encoder.trainable()
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    expected = {name: tuple(value.shape) for name, value in parameters.items()}
    if shapes != expected:
        odd = sorted(name for name in shapes | expected if shapes.get(name) != expected.get(name))
        raise CheckpointError(
            f"{folder / ADAPTER_FILE} does not fit its own settings: {len(odd)} tensors are missing, unknown or "
            f"of another shape, {odd[0]} for one."
        )
    with torch.no_grad():
        for name, value in tensors.items():
            parameters[name].copy_(value)


def _read(folder: Path, name: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse((folder / name).read_text(encoding="utf-8"))
    except OSError:
        raise CheckpointError(
            f"{folder} is not a checkpoint: it has no {name}. Expected a folder that `sda-features adapt` wrote."
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{folder / name} is damaged: {error}") from None
