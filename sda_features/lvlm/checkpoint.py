"""Checkpoint folders: what adapts a base model, and proof of which base model and data it belongs to.

adapter.safetensors   LoRA factors, gates, projection
rotation.safetensors  the transform of `--dim`, see reduction.py; hashed like the adapter
settings.json         AdaptSettings: adapter, loss, prompts, projection, ...
preprocessing.json    chat template, vocabulary hash, image processor
manifest.json         hashes of base model and data, package versions, last metrics
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL.Image import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sda_features import __version__
from sda_features.artifacts import atomic_folder, sha256_files, sha256_json, write_json
from sda_features.catalog.images import fit_within
from sda_features.catalog.prompts import text_prompt
from sda_features.config import (
    AdapterSettings,
    AdaptSettings,
    BackboneSettings,
    ProjectionSettings,
    PromptSettings,
)
from sda_features.errors import CheckpointError, foreign
from sda_features.lvlm.backbone import MODEL_TYPES as LVM_TYPES
from sda_features.lvlm.backbone import Backbone, Prompt, PromptBatch
from sda_features.lvlm.dual_encoder import MODEL_TYPES as DUAL_TYPES
from sda_features.lvlm.dual_encoder import DualEncoder
from sda_features.lvlm.encoder import PromptEncoder
from sda_features.lvlm.item_encoder import ItemEncoder
from sda_features.lvlm.loading import load_config
from sda_features.lvlm.moda import expert_weights
from sda_features.lvlm.model_card import checkpoint_card
from sda_features.lvlm.reduction import reduce_vectors
from sda_features.lvlm.weights import fingerprint

FORMAT = 2
ADAPTER_FILE, SETTINGS_FILE = "adapter.safetensors", "settings.json"
PREPROCESSING_FILE, MANIFEST_FILE = "preprocessing.json", "manifest.json"
ROTATION_FILE, CARD_FILE = "rotation.safetensors", "README.md"
FILES = {ADAPTER_FILE, SETTINGS_FILE, PREPROCESSING_FILE, MANIFEST_FILE, ROTATION_FILE, CARD_FILE}


@dataclass(frozen=True)
class LoadedEncoder:
    """An LVM ready for inference and what its vectors depend on: an `ItemEncoder`.

    Attributes:
        normalize: whether vectors are L2-normalised, as they were in training.
        version: 12 hex digits over all that vectors depend on: adapter and its settings, projection, base
            model, quantisation, preprocessing, prompts, normalisation, dimension and rotation.
        rotation: float32 [encoder's dimension, dim] if vectors are made smaller, else None.
    """

    encoder: PromptEncoder
    prompts: PromptSettings
    normalize: bool
    version: str
    dim: int
    rotation: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.encoder.backbone.device

    def prompt(self, fields: Mapping[str, str]) -> str | None:
        """The instruction and the fields of an item."""
        return text_prompt(fields, self.prompts)

    def shrink(self, picture: Image) -> Image:
        """The picture within the largest side of the prompts."""
        return fit_within(picture, self.prompts.max_image_side)

    def text_tokens(self, text: str) -> Prompt:
        """See `Backbone.text_tokens`."""
        return self.encoder.backbone.text_tokens(text, self.prompts.max_text_tokens)

    def image_length(self, picture: Image) -> int:
        """See `Backbone.image_length`."""
        return self.encoder.backbone.image_length(picture, self.prompts)

    def image_tokens(self, picture: Image) -> Prompt:
        """See `Backbone.image_tokens`."""
        return self.encoder.backbone.image_tokens(picture, self.prompts)

    def collate(self, sequences: list[Prompt], modality: str) -> PromptBatch:
        """See `Backbone.collate`."""
        return self.encoder.backbone.collate(sequences, modality)

    def vectors(self, batch: PromptBatch) -> Tensor:
        """Vectors of prompts as they are stored: float32 [B, dim]."""
        vectors: Tensor = self.encoder(batch)
        if self.rotation is not None:
            vectors = reduce_vectors(vectors, self.rotation, self.dim)
        return F.normalize(vectors, dim=1) if self.normalize else vectors


def save_checkpoint(
    folder: Path,
    encoder: PromptEncoder,
    settings: AdaptSettings,
    manifest: dict[str, Any],
    rotation: Tensor | None = None,
) -> None:
    """Write a complete checkpoint to `folder`, atomically; an older one there is replaced.

    Args:
        manifest: what the run knows beyond the settings, e.g. data hash and metrics.
        rotation: see `reduction.fit_rotation`; without one the checkpoint makes vectors of one size.
    """
    backbone = encoder.backbone
    tensors = {name: value.detach().cpu().contiguous() for name, value in encoder.trainable().items()}
    with atomic_folder(folder) as temporary:
        save_file(tensors, temporary / ADAPTER_FILE)
        if rotation is not None:
            save_file({"rotation": rotation}, temporary / ROTATION_FILE)
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
            "settings_sha256": sha256_files([temporary / SETTINGS_FILE]),
            "rotation_sha256": None if rotation is None else sha256_files([temporary / ROTATION_FILE]),
            **manifest,
        }
        write_json(temporary / MANIFEST_FILE, complete)
        (temporary / CARD_FILE).write_text(checkpoint_card(settings, complete), encoding="utf-8")


def load_checkpoint(folder: Path, dim: int | None = None, **overrides: Any) -> LoadedEncoder:
    """Load a checkpoint over its base model.

    Nothing of the base model is loaded or run before its hash has been found to be that of the training.
    That training trusted the model's own code does not count: `trust_remote_code` must be given again.

    Args:
        folder: a folder that `adapt` wrote.
        dim: make vectors of this dimension with the stored rotation; None: as they were trained.
        overrides: backbone settings other than those of training: `model` when the base model
            moved, `quantization`, `dtype`, `device`, `trust_remote_code`.

    Raises:
        CheckpointError: incomplete or damaged, or the base model's weights or preprocessing differ.
        SettingsError: the rotation has fewer dimensions than `dim`.
    """
    stored = read_checkpoint(folder)
    settings, manifest = stored.settings, stored.manifest
    options = settings.backbone.model_dump() | {"trust_remote_code": False} | overrides
    wanted = BackboneSettings.parse(**options)
    expected, found = manifest["base_model"], fingerprint(wanted.model)
    if found != expected["sha256"]:
        raise CheckpointError(
            f"{folder} adapts the base model {expected['name']} (sha256 {expected['sha256'][:12]}), but "
            f"{wanted.model} has sha256 {found[:12]}. Give the right one with --model, or adapt again."
        )
    backbone = Backbone(wanted)
    if backbone.preprocessing() != stored.preprocessing:
        raise CheckpointError(
            f"The tokenizer, chat template or image processor of {backbone.settings.model} is not the one that "
            f"{folder} was trained with ({PREPROCESSING_FILE}); restore it, or adapt again."
        )
    encoder = PromptEncoder(backbone, settings.adapter, settings.projection)
    _load_weights(encoder, folder)
    rotation = None if dim is None else _load_rotation(folder, encoder.dim, dim).to(backbone.device)
    normalize = settings.loss.normalize
    adapted = {
        "sha256": manifest["adapter_sha256"],
        "settings": settings.adapter.model_dump(mode="json"),
        "projection": settings.projection.model_dump(mode="json"),
    }
    reduced = None if dim is None else {"dim": dim, "rotation": manifest["rotation_sha256"]}
    version = _version(backbone, settings.prompts, normalize, adapted, reduced)
    return LoadedEncoder(encoder.eval(), settings.prompts, normalize, version, dim or encoder.dim, rotation)


@dataclass(frozen=True)
class StoredCheckpoint:
    """The JSON of a checkpoint folder whose files have the hashes that its manifest states.

    For `manifest` see `save_checkpoint`, for `preprocessing` see `Backbone.preprocessing`.
    """

    settings: AdaptSettings
    manifest: dict[str, Any]
    preprocessing: dict[str, Any]


def read_checkpoint(folder: Path) -> StoredCheckpoint:
    """Read and check a checkpoint without its base model.

    Raises:
        CheckpointError: incomplete, damaged or of another format.
    """
    manifest = _read(folder, MANIFEST_FILE, json.loads)
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{folder / MANIFEST_FILE} is damaged: expected a JSON object.")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} has checkpoint format {manifest.get('format')!r}; this version reads format {FORMAT}. "
            "Adapt again, or use the version of sda-features that wrote it."
        )
    settings = _read(folder, SETTINGS_FILE, lambda text: AdaptSettings.model_validate_json(text))
    preprocessing = _read(folder, PREPROCESSING_FILE, json.loads)
    base = manifest.get("base_model")
    if not (
        isinstance(base, dict)
        and all(isinstance(base.get(key), str) for key in ("name", "sha256"))
        and {"adapter_sha256", "settings_sha256", "rotation_sha256"} <= manifest.keys()
    ):
        raise CheckpointError(
            f"{folder / MANIFEST_FILE} is damaged: hashes are missing. Copy the folder again."
        )
    for name, key in {ADAPTER_FILE: "adapter", SETTINGS_FILE: "settings", ROTATION_FILE: "rotation"}.items():
        path, expected = folder / name, manifest[f"{key}_sha256"]
        if name == ROTATION_FILE and not path.exists():
            continue  # needed for --dim alone, which says so
        with foreign(CheckpointError, f"{path} cannot be read"):
            found = sha256_files([path])
        if found != expected:
            raise CheckpointError(f"{path} does not match the hash in {MANIFEST_FILE}; copy it again.")
    return StoredCheckpoint(settings, manifest, preprocessing)


def expert_gates(folder: Path) -> NDArray[np.float32] | None:
    """omega^m (Eq. 6) of a checkpoint, the mean over the adapted linears of a decoder layer.

    Returns:
        float32 [layers, M, E], modalities in the order of `MODALITIES`; None for an adapter without experts.

    Raises:
        CheckpointError: the adapter's file is missing or damaged.
    """
    try:
        tensors = load_file(folder / ADAPTER_FILE)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / ADAPTER_FILE} cannot be read: {error}") from error
    if "gates.weight" not in tensors:
        return None
    weights = expert_weights(*(tensors[f"gates.{name}"].float() for name in ("embedding", "weight", "bias")))
    layers = {match[1] for name in tensors if (match := re.search(r"\blayers\.(\d+)\.", name))}
    by_layer = weights.reshape(len(layers), -1, *weights.shape[1:])  # gates are in the model's order
    return by_layer.mean(dim=1).numpy()


def unadapted(settings: BackboneSettings, prompts: PromptSettings) -> LoadedEncoder:
    """The base model itself as an encoder: the "vanilla" vectors that the paper calls QwenVL."""
    encoder = PromptEncoder(Backbone(settings), AdapterSettings(kind="none"), ProjectionSettings(kind="none"))
    version = _version(encoder.backbone, prompts, True, None)
    return LoadedEncoder(encoder.eval(), prompts, True, version, encoder.dim)


def pretrained(settings: BackboneSettings, prompts: PromptSettings) -> ItemEncoder:
    """A model as it was published: an unadapted LVM, or CLIP or SigLIP by `model_type`.

    Raises:
        BackboneError: no such checkpoint, another architecture, or files that cannot be loaded.
        SettingsError: a quantisation was asked for that the model does not have.
    """
    config = load_config(settings, (*LVM_TYPES, *DUAL_TYPES))
    return DualEncoder(settings, prompts) if config.model_type in DUAL_TYPES else unadapted(settings, prompts)


def _version(
    backbone: Backbone,
    prompts: PromptSettings,
    normalize: bool,
    adapter: dict[str, Any] | None,
    reduced: dict[str, Any] | None = None,
) -> str:
    read = prompts.model_dump()
    if prompts.max_text_tokens == PromptSettings().max_text_tokens:
        del read["max_text_tokens"]  # a bound that few texts reach: versions made before it stay valid
    parts: dict[str, Any] = {
        "adapter": adapter,
        "base": backbone.fingerprint(),
        "quantization": backbone.settings.quantization,
        "preprocessing": backbone.preprocessing(),
        "prompts": read,
        "normalize": normalize,
        "reduced": reduced,
    }
    return sha256_json(parts)[:12]


def _load_weights(encoder: PromptEncoder, folder: Path) -> None:
    with foreign(CheckpointError, f"{folder / ADAPTER_FILE} is damaged"):
        tensors = load_file(folder / ADAPTER_FILE)
    parameters = encoder.trainable()
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


def _load_rotation(folder: Path, width: int, dim: int) -> Tensor:
    """The first `dim` columns of the stored rotation of vectors of dimension `width`."""
    path = folder / ROTATION_FILE
    if not path.exists():
        raise CheckpointError(
            f"{folder} has no {ROTATION_FILE}, which --dim needs; `sda-features adapt` writes it. Adapt again, or "
            "leave --dim out."
        )
    with foreign(CheckpointError, f"{path} is damaged"):
        rotation = load_file(path)["rotation"]
    if rotation.ndim != 2 or len(rotation) != width or not rotation.isfinite().all():
        raise CheckpointError(
            f"{path} is damaged: expected a finite matrix with {width} rows, got shape {tuple(rotation.shape)}."
        )
    reduce_vectors(rotation.new_zeros(1, width), rotation, dim)  # says so if it is too narrow
    return rotation[:, :dim]


def _read(folder: Path, name: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse((folder / name).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{folder} is not a checkpoint: it has no {name}. Expected a folder that `sda-features adapt` wrote."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{folder / name} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / name} is damaged: {error}") from None
