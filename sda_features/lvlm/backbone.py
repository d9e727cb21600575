"""A Qwen-VL-class model: prompts and pictures to its inputs, and those to hidden states.

Qwen2-VL, Qwen2.5-VL and Qwen3-VL differ only by configuration here: AutoTokenizer gives the chat
template, AutoImageProcessor the settings of the patches. The combined Processor classes are not
used: they need torchvision even for still images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from tokenizers import Tokenizer
from torch import Tensor

from sda_features.config import BackboneSettings, PromptSettings
from sda_features.errors import BackboneError
from sda_features.images import fit_within, limit_aspect
from sda_features.lvlm.attention import Layout, common_prefix
from sda_features.lvlm.loading import (
    load_config,
    load_image_processor,
    load_model,
    load_tokenizer,
    pick_device,
    pick_dtype,
    tokenizer_sha256,
)
from sda_features.lvlm.patches import Patcher
from sda_features.lvlm.weights import fingerprint

PLACEHOLDER = "\ue000"  # private use: stands for a text in a chat template
MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@dataclass(frozen=True)
class Prompt:
    """One tokenised sequence of one modality.

    Attributes:
        token_ids: the chat-formatted prompt; a picture occupies one token for each merged patch.
        patches: [P, C * patch volume] picture patches in the model's dtype, or None for a text prompt.
        grid: [3] int64 patches in time, height and width, or None.
        cut: whether the model reads less than the whole text.
    """

    token_ids: list[int]
    patches: Tensor | None = None
    grid: Tensor | None = None
    cut: bool = False


@dataclass(frozen=True)
class PromptBatch:
    """Right-padded prompts of one modality.

    Attributes:
        modality: "text" or "image".
        input_ids: [B, T] int64.
        lengths: [B] int64 number of tokens that are not padding.
        patches: [sum P, C * patch volume] float32, or None.
        grids: [B, 3] int64, or None.
    """

    modality: str
    input_ids: Tensor
    lengths: Tensor
    patches: Tensor | None
    grids: Tensor | None

    def to(self, device: torch.device) -> PromptBatch:
        """The same batch on `device`."""
        moved = (
            None if tensor is None else tensor.to(device)
            for tensor in (self.input_ids, self.lengths, self.patches, self.grids)
        )
        return PromptBatch(self.modality, *moved)  # type: ignore[arg-type]


class Backbone:
    """A frozen base model with its tokenizer and image processor.

    Args:
        settings: which checkpoint, quantisation, dtype and device.

    Raises:
        BackboneError: no such checkpoint, another architecture, or weights that cannot be loaded.
    """

    def __init__(self, settings: BackboneSettings):
        config = load_config(settings, MODEL_TYPES)
        self.settings = settings
        self.device = torch.device(pick_device(settings.device))
        self.dtype = pick_dtype(settings.dtype, self.device)
        self.model = load_model(settings, config, self.device, self.dtype)
        self.tokenizer = load_tokenizer(settings)
        self.image_processor = load_image_processor(settings)
        self._patches = Patcher(self.image_processor, self.dtype)
        self.hidden_size: int = config.get_text_config().hidden_size
        self.image_token_id: int = config.image_token_id
        self.pad_token_id: int = self.tokenizer.pad_token_id or 0
        self._plain = _without_control_tokens(self.tokenizer)
        self._frames: dict[tuple[str, ...], tuple[list[int], str, str, list[int]]] = {}
        self._templates: dict[str, list[int]] = {}  # image instruction -> tokens
        layer_types = getattr(config.get_text_config(), "layer_types", None) or ["full_attention"]
        self._full_attention = set(layer_types) == {"full_attention"}  # no window would slide over a layout

    def text_tokens(self, prompt: str, most: int | None = None) -> Prompt:
        """Chat-format and tokenise a text prompt, generation prompt included.

        Args:
            prompt: plain text: what looks like a control token in it is text.
            most: tokens after which it is cut; None: it is not.
        """
        return self._tokenize([], prompt, most)

    def image_length(self, picture: Image, prompts: PromptSettings) -> int:
        """Number of tokens that `image_tokens` would give, without making patches."""
        width, height = _shown(picture, prompts).size
        patches = self.image_processor.get_number_of_image_patches(height, width)
        template = self._image_template(prompts.image_instruction)
        merged: int = int(patches) // self.image_processor.merge_size**2
        return len(template) - 1 + merged

    def image_tokens(self, picture: Image, prompts: PromptSettings) -> Prompt:
        """Chat-format a picture and the image instruction; patches as the image processor makes them."""
        patches, grid = self._patches(_shown(picture, prompts))
        count = int(grid.prod()) // self.image_processor.merge_size**2
        template = self._image_template(prompts.image_instruction)
        at = template.index(self.image_token_id)
        token_ids = template[:at] + [self.image_token_id] * count + template[at + 1 :]
        return Prompt(token_ids, patches, grid)

    def collate(self, prompts: list[Prompt], modality: str) -> PromptBatch:
        """Pad prompts on the right into one batch."""
        lengths = torch.tensor([len(prompt.token_ids) for prompt in prompts])
        input_ids = torch.full((len(prompts), int(lengths.max())), self.pad_token_id)
        for row, prompt in enumerate(prompts):
            input_ids[row, : len(prompt.token_ids)] = torch.tensor(prompt.token_ids)
        patches = [prompt.patches for prompt in prompts if prompt.patches is not None]
        grids = [prompt.grid for prompt in prompts if prompt.grid is not None]
        return PromptBatch(
            modality,
            input_ids,
            lengths,
            torch.cat(patches) if patches else None,
            torch.stack(grids) if grids else None,
        )

    def hidden_states(self, batch: PromptBatch) -> Tensor:
        """Last hidden states [B, T, hidden] in the model's dtype; positions past a row's length are noise.

        Padding is on the right and attention is causal, so no real token sees padding and no mask
        is passed: attention may then take its fastest kernel. In inference mode what the prompts begin
        with is computed once; not in training, where dropout would draw over other positions.
        """
        vision: dict[str, Any] = {}
        if batch.patches is not None:
            vision = {
                "pixel_values": batch.patches,
                "image_grid_thw": batch.grids,
                "mm_token_type_ids": (batch.input_ids == self.image_token_id).int(),
            }
        layout = self._layout(batch) if torch.is_inference_mode_enabled() else None
        if layout is None:
            output = self.model(input_ids=batch.input_ids, use_cache=False, **vision)
            states: Tensor = output.last_hidden_state
            return states
        if batch.grids is not None:
            positions = self._picture_positions(batch.input_ids, batch.grids)
            vision["mm_token_type_ids"] = layout.join(vision["mm_token_type_ids"])
        else:
            positions = torch.arange(batch.input_ids.shape[1], device=self.device)
            positions = positions.expand(3, *batch.input_ids.shape)
        output = self.model(
            input_ids=layout.join(batch.input_ids),
            position_ids=layout.join(positions),
            use_cache=False,
            layout=layout,
            **vision,
        )
        return layout.split(output.last_hidden_state)

    def _picture_positions(self, input_ids: Tensor, grids: Tensor) -> Tensor:
        """Positions of the tokens in time, height and width, int64 [3, B, T]; those of one grid are computed once."""
        different, which = torch.unique(grids, dim=0, return_inverse=True)
        rows = input_ids[[int((which == kind).nonzero()[0]) for kind in range(len(different))]]
        pictures = (rows == self.image_token_id).int()
        positions: Tensor = self.model.get_rope_index(rows, pictures, different)[0]  # type: ignore[operator]
        return positions[:, which]

    def _layout(self, batch: PromptBatch) -> Layout | None:
        """How to run the batch as one sequence; None where that saves nothing."""
        rows = len(batch.lengths)
        if rows == 1 or not self._full_attention:
            return None
        prefix = common_prefix(batch.input_ids, batch.lengths, self.image_token_id)
        return Layout(prefix, rows) if prefix > 0 else None

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the checkpoint's configuration and weights; quantisation does not count."""
        return fingerprint(self.settings.model)

    def preprocessing(self) -> dict[str, Any]:
        """What decides a prompt's tokens and patches, as JSON: stored in checkpoints, compared on load."""
        return {
            "chat_template": self.tokenizer.chat_template,
            "tokenizer_sha256": tokenizer_sha256(self.tokenizer),
            "image_processor": json.loads(self.image_processor.to_json_string()),
        }

    def _image_template(self, instruction: str) -> list[int]:
        if instruction in self._templates:
            return self._templates[instruction]
        token_ids = self._tokenize([{"type": "image"}], instruction).token_ids
        if token_ids.count(self.image_token_id) != 1:
            raise BackboneError(
                f"The chat template of {self.settings.model} gives {token_ids.count(self.image_token_id)} "
                f"image tokens (id {self.image_token_id}) for one picture; expected exactly 1."
            )
        self._templates[instruction] = token_ids
        return token_ids

    def _tokenize(self, before: list[dict[str, str]], text: str, most: int | None = None) -> Prompt:
        """A message of `before` and a text; only the chat template makes control tokens."""
        head, start, end, tail = self._frame(tuple(part["type"] for part in before))
        middle = self._plain(start + text + end)
        if cut := most is not None and len(middle) > most:
            middle = self._plain(start + text)[:most] + self._plain(end)
        return Prompt(head + middle + tail, cut=cut)

    def _frame(self, before: tuple[str, ...]) -> tuple[list[int], str, str, list[int]]:
        """What the chat template puts around a text: tokens, plain text beside it, and again tokens."""
        if before in self._frames:
            return self._frames[before]
        content = [*({"type": kind} for kind in before), {"type": "text", "text": PLACEHOLDER}]
        message = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        if message.count(PLACEHOLDER) != 1:
            raise BackboneError(
                f"The chat template of {self.settings.model} gives a text {message.count(PLACEHOLDER)} times; "
                "expected once."
            )
        left, _, right = message.partition(PLACEHOLDER)
        # A tokenizer splits at control tokens first, so that what lies between them is tokenised alone.
        controls = re.compile("|".join(map(re.escape, self.tokenizer.get_added_vocab())) or r"\Z\A")
        start = max((found.end() for found in controls.finditer(left)), default=0)
        end = min((found.start() for found in controls.finditer(right)), default=len(right))
        head, tail = (
            self.tokenizer(part, add_special_tokens=False)["input_ids"]
            for part in (left[:start], right[end:])
        )
        self._frames[before] = head, left[start:], right[:end], tail
        return self._frames[before]


def _without_control_tokens(tokenizer: Any) -> Callable[[str], list[int]]:
    """A tokenizer's model alone: text in, tokens of its ordinary vocabulary out."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    plain = Tokenizer.from_str(json.dumps(state))
    return lambda text: plain.encode(text, add_special_tokens=False).ids


def mean_pool(states: Tensor, lengths: Tensor) -> Tensor:
    """Mean over each row's real positions (paper, section 2.1), in float32.

    Args:
        states: [B, T, hidden].
        lengths: [B] int64.

    Returns:
        [B, hidden] float32.
    """
    real = torch.arange(states.shape[1], device=states.device) < lengths[:, None]  # [B, T]
    weights = real.to(torch.float32) / lengths[:, None]
    return (weights[..., None] * states.float()).sum(dim=1)  # not a product that autocast would lower


def _shown(picture: Image, prompts: PromptSettings) -> Image:
    """The picture as the image processor gets it."""
    return limit_aspect(fit_within(picture, prompts.max_image_side))
