"""CLIP, SigLIP and SigLIP 2 as they were published: the extractors that adapted vectors are compared with.

They read texts and pictures with two models of their own into one space. A vector is the pooled output of
`get_text_features` or `get_image_features`, after CLIP's projection, L2-normalised: what the models' own
similarities are made of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as PillowImage
from PIL.Image import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from sda_features.artifacts import sha256_json
from sda_features.catalog.images import limit_aspect
from sda_features.catalog.prompts import caption
from sda_features.config import BackboneSettings, PromptSettings
from sda_features.errors import BackboneError, SettingsError, foreign
from sda_features.lvlm.backbone import Prompt
from sda_features.lvlm.loading import load_config, pick_dtype, tokenizer_sha256, use_device
from sda_features.lvlm.weights import fingerprint

MODEL_TYPES = ("clip", "siglip", "siglip2")


@dataclass(frozen=True)
class DualBatch:
    """Texts or pictures as `get_text_features` or `get_image_features` takes them.

    Attributes:
        modality: "text" or "image".
        inputs: `input_ids` [B, T] int64; or `pixel_values` [B, C, H, W] float32; for SigLIP 2 that
            keeps aspect ratios, [B, P, patch volume] and what tells its padding.
    """

    modality: str
    inputs: dict[str, Tensor]


class DualEncoder:
    """A published CLIP or SigLIP model: an `ItemEncoder`.

    Texts are the values of an item's fields (`prompts.caption`), cut where the model's positions end:
    77 tokens for CLIP, 64 for SigLIP. Pictures are scaled and cropped by the model's own image
    processor, from the catalogue's full size.

    Args:
        settings: which checkpoint, dtype and device; these models are small and never quantised.
        prompts: `max_field_chars` alone counts.

    Attributes:
        version: 12 hex digits over weights, tokenizer, image processor and `max_field_chars`.
        text_limit: tokens of a text, the model's control tokens among them.

    Raises:
        BackboneError: no such checkpoint, another architecture, or files that cannot be loaded.
        SettingsError: a quantisation was asked for.
    """

    def __init__(self, settings: BackboneSettings, prompts: PromptSettings):
        config = load_config(settings, MODEL_TYPES)
        if "quantization" in settings.model_fields_set and settings.quantization != "none":
            raise SettingsError(
                f"{settings.model} is a {config.model_type!r} model, which is not quantised; got --quantization "
                f"{settings.quantization}. Leave the option out."
            )
        self.prompts = prompts
        self._siglip: bool = config.model_type != "clip"
        self.device = use_device(settings.device)
        self.dtype = pick_dtype(settings.dtype, self.device)
        self.dim: int = config.text_config.projection_size if self._siglip else config.projection_dim
        self.text_limit: int = config.text_config.max_position_embeddings
        vision = config.vision_config
        if config.model_type == "siglip2":
            self._patches: int = vision.num_patches
        else:
            self._patches = (vision.image_size // vision.patch_size) ** 2
        self.model, self.tokenizer, self.image_processor = _load(settings, self.device, self.dtype)
        self.version = sha256_json(
            {
                "base": fingerprint(settings.model),
                "tokenizer": tokenizer_sha256(self.tokenizer),
                "image_processor": json.loads(self.image_processor.to_json_string()),
                "max_field_chars": prompts.max_field_chars,
            }
        )[:12]

    def prompt(self, fields: Mapping[str, str]) -> str | None:
        """The values of an item's fields; in lower case for SigLIP, which has learned from such texts alone.

        Not every tokenizer that is published with a SigLIP model sees to it.
        """
        text = caption(fields, self.prompts)
        return text.lower() if text and self._siglip else text

    def shrink(self, picture: Image) -> Image:
        """The picture as the image processor scales and crops it."""
        made = self.image_processor(
            images=[limit_aspect(picture)], do_rescale=False, do_normalize=False, return_tensors="np"
        )
        pixels = made["pixel_values"][0]  # uint8 [3, H, W], or patches [P, patch volume]
        if "spatial_shapes" not in made:
            return PillowImage.fromarray(np.moveaxis(pixels, 0, -1))
        (height, width), side = made["spatial_shapes"][0], self.image_processor.patch_size
        patches = pixels[: height * width].reshape(height, width, side, side, 3)
        return PillowImage.fromarray(patches.swapaxes(1, 2).reshape(height * side, width * side, 3))

    def text_tokens(self, text: str) -> Prompt:
        """Tokenise a text with the model's control tokens, cut to `text_limit`.

        SigLIP pools the last position, and has learned to find padding there: its texts are padded.
        """
        cut = len(self._tokenize(text, self.text_limit + 1)) > self.text_limit
        padding = "max_length" if self._siglip else False
        return Prompt(self._tokenize(text, self.text_limit, padding), cut=cut)

    def image_length(self, picture: Image) -> int:
        """Patches of a picture: of every one the same number."""
        return self._patches

    def image_tokens(self, picture: Image) -> dict[str, Tensor]:
        """Arguments of `get_image_features` for a picture that `shrink` gave, a batch of one."""
        return dict(
            self.image_processor(images=[picture], do_resize=False, do_center_crop=False, return_tensors="pt")
        )

    def collate(self, sequences: list[Any], modality: str) -> DualBatch:
        """One batch of what `text_tokens` or `image_tokens` gave.

        Shorter texts of CLIP end in more end tokens: it pools the first one, and its attention is
        causal. No mask is needed; SigLIP was trained without one.
        """
        if modality == "image":
            return DualBatch(
                modality, {name: torch.cat([made[name] for made in sequences]) for name in sequences[0]}
            )
        longest = max(len(text.token_ids) for text in sequences)
        rows = [text.token_ids + text.token_ids[-1:] * (longest - len(text.token_ids)) for text in sequences]
        return DualBatch(modality, {"input_ids": torch.tensor(rows)})

    def vectors(self, batch: DualBatch) -> Tensor:
        """Unit vectors, float32 [B, dim]."""
        inputs = {name: value.to(self.device) for name, value in batch.inputs.items()}
        if batch.modality == "text":
            output = self.model.get_text_features(**inputs)
        else:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
            output = self.model.get_image_features(**inputs)
        return F.normalize(output.pooler_output.float(), dim=1)

    def _tokenize(self, text: str, limit: int, padding: str | bool = False) -> list[int]:
        # What looks like a control token in a text is text.
        made = self.tokenizer(
            text, truncation=True, max_length=limit, padding=padding, split_special_tokens=True
        )
        return list(made["input_ids"])


def _load(settings: BackboneSettings, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """Model, tokenizer and image processor of a checkpoint."""
    disable_progress_bar()
    trust = {"trust_remote_code": settings.trust_remote_code}
    with foreign(BackboneError, f"{settings.model} cannot be loaded"):
        try:
            model, read = AutoModel.from_pretrained(
                settings.model, dtype=dtype, use_safetensors=True, output_loading_info=True, **trust
            )
            tokenizer = AutoTokenizer.from_pretrained(settings.model, **trust)
            image_processor = AutoImageProcessor.from_pretrained(settings.model, backend="pil", **trust)
        except ImportError as error:  # SentencePiece, which the tokenizer of the first SigLIP needs
            raise BackboneError(
                f"{settings.model} needs a package that is not installed (pip install 'sda-features[siglip]' for "
                f"SigLIP): {error}"
            ) from error
    if missing := sorted(read["missing_keys"]):  # transformers would go on with random numbers
        raise BackboneError(
            f"{settings.model} lacks {len(missing)} weights of the model, {missing[0]} for one. Expected a whole "
            "CLIP or SigLIP, with its text and its picture model."
        )
    return model.to(device).eval(), tokenizer, image_processor
