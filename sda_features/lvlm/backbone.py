"""A Qwen-VL-class model: prompts and pictures to its inputs, and those to hidden states.

Qwen2-VL, Qwen2.5-VL and Qwen3-VL differ only by configuration here: AutoTokenizer gives the chat
template, AutoImageProcessor the settings of the patches. The combined Processor classes are not
used: they need torchvision even for still images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL.Image import Image
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from sda_features.catalog.images import fit_within, limit_aspect
from sda_features.config import BackboneSettings, PromptSettings
from sda_features.errors import BackboneError
from sda_features.lvlm.attention import Layout, common_prefix
from sda_features.lvlm.loading import (
    load_config,
    load_image_processor,
    load_model,
    load_tokenizer,
    pick_dtype,
    tokenizer_sha256,
    use_device,
)
from sda_features.lvlm.patches import Patcher
from sda_features.lvlm.vision_inputs import Pictures, add_at_pictures, picture_inputs
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
    """Right-padded prompts of one modality, with all that follows from their sizes.

    Attributes:
        modality: "text" or "image".
        input_ids: [B, T] int64.
        lengths: [B] int64 number of tokens that are not padding.
        patches: [sum P, C * patch volume] in the model's dtype, or None.
        grids: [B, 3] int64, always on the CPU, or None.
        pictures: what else the model needs of the pictures, or None.
        prefix: number of tokens that all rows begin with, see `common_prefix`.
    """

    modality: str
    input_ids: Tensor
    lengths: Tensor
    patches: Tensor | None
    grids: Tensor | None
    pictures: Pictures | None = None
    prefix: int = 0

    def to(self, device: torch.device) -> PromptBatch:
        """The same batch on `device`; from pinned memory nobody waits for the copy."""
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def mapped(self, move: Callable[[Tensor], Tensor]) -> PromptBatch:
        """The same with each tensor moved but `grids`."""
        input_ids, lengths = move(self.input_ids), move(self.lengths)
        patches = None if self.patches is None else move(self.patches)
        pictures = None if self.pictures is None else self.pictures.mapped(move)
        return replace(self, input_ids=input_ids, lengths=lengths, patches=patches, pictures=pictures)


class Backbone:
    """A frozen base model with its tokenizer and image processor.

    Args:
        model: weights that are there already, as `load_model` gives them; None: the checkpoint's.

    Raises:
        BackboneError: no such checkpoint, another architecture, or weights that cannot be loaded.
    """

    def __init__(self, settings: BackboneSettings, model: nn.Module | None = None):
        config = load_config(settings, MODEL_TYPES)
        self.settings = settings
        self.device = use_device(settings.device)
        self.dtype = pick_dtype(settings.dtype, self.device)
        self.model = model or load_model(settings, config, self.device, self.dtype)
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
        if hasattr(self.model.language_model, "_deepstack_process"):
            self.model.language_model._deepstack_process = add_at_pictures  # type: ignore
        self._full_attention = set(layer_types) == {"full_attention"}  # no window would slide over a layout

    def text_tokens(self, prompt: str, most: int | None = None, before: tuple[str, ...] = ()) -> Prompt:
        """Chat-format and tokenise a text prompt, generation prompt included.

        Args:
            prompt: plain text: what looks like a control token in it is text.
            most: tokens after which it is cut; None: it is not.
            before: types of what stands before it in the message, such as "image".
        """
        head, start, end, tail = self._frame(before)
        middle = self._plain(start + prompt + end)
        if cut := most is not None and len(middle) > most:
            middle = self._plain(start + prompt)[:most] + self._plain(end)
        return Prompt(head + middle + tail, cut=cut)

    def image_length(self, picture: Image, prompts: PromptSettings) -> int:
        """Number of tokens that `image_tokens` would give, without making patches."""
        width, height = _shown(picture, prompts).size
        patches = self.image_processor.get_number_of_image_patches(height, width)
        merged: int = patches // self.image_processor.merge_size**2
        return len(self._image_template(prompts.image_instruction)) - 1 + merged

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
        rows = [torch.tensor(prompt.token_ids) for prompt in prompts]
        lengths = torch.tensor([len(row) for row in rows])
        input_ids = pad_sequence(rows, batch_first=True, padding_value=self.pad_token_id)
        patches = grids = pictures = None
        if modality == "image":
            patches = torch.cat([prompt.patches for prompt in prompts if prompt.patches is not None])
            grids = torch.stack([prompt.grid for prompt in prompts if prompt.grid is not None])
            pictures = picture_inputs(self.model, input_ids, grids, self.image_token_id)
        prefix = common_prefix(input_ids, lengths, self.image_token_id)
        batch = PromptBatch(modality, input_ids, lengths, patches, grids, pictures, prefix)
        # A GPU copies from page-locked memory while it computes.
        return batch.mapped(Tensor.pin_memory) if self.device.type == "cuda" else batch

    def hidden_states(self, batch: PromptBatch) -> Tensor:
        """Last hidden states [B, T, hidden] in the model's dtype; positions past a row's length are noise.

        Padding is on the right and attention is causal, so no real token sees padding and no mask
        is passed: attention may then take its fastest kernel. In inference mode what the prompts begin
        with is computed once; not in training, where dropout would draw over other positions.
        Nothing here waits for a GPU.
        """
        tokens, layout = batch.input_ids, self._layout(batch) if torch.is_inference_mode_enabled() else None
        if batch.pictures is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand(3, *tokens.shape)
        else:
            positions = batch.pictures.positions
        if layout is not None:
            tokens, positions = layout.join(tokens), layout.join(positions)
        embedded = self.model.get_input_embeddings()(tokens)  # type: ignore[operator]
        deep: dict[str, Any] = {}
        if batch.pictures is not None:
            places = batch.pictures.places
            if layout is not None:
                places = places - places // batch.input_ids.shape[1] * layout.prefix
            embedded, deep = self._with_pictures(embedded, places, batch)
        output = self.model.language_model(  # type: ignore[operator]
            inputs_embeds=embedded, position_ids=positions, use_cache=False, layout=layout, **deep
        )
        states: Tensor = output.last_hidden_state
        return states if layout is None else layout.split(states)

    def _with_pictures(
        self, embedded: Tensor, places: Tensor, batch: PromptBatch
    ) -> tuple[Tensor, dict[str, Any]]:
        """Token embeddings with those of pictures in their places, and what Qwen3-VL adds in deeper layers."""
        pictures = batch.pictures
        assert pictures is not None
        seen = self.model.visual(  # type: ignore[operator]
            batch.patches, grid_thw=batch.grids, layouts=pictures.windows, **pictures.tower
        )
        features = seen.pooler_output.to(embedded.dtype)
        placed = embedded.flatten(0, 1).index_copy(0, places, features).view_as(embedded)
        if deep := getattr(seen, "deepstack_features", None):
            return placed, {"visual_pos_masks": places, "deepstack_visual_embeds": deep}
        return placed, {}

    def _layout(self, batch: PromptBatch) -> Layout | None:
        """How to run the batch as one sequence; None where that saves nothing."""
        rows, length = batch.input_ids.shape
        if rows == 1 or batch.prefix == 0 or not self._full_attention:
            return None
        visible = batch.input_ids.new_ones(length - batch.prefix, length, dtype=torch.bool)
        return Layout(batch.prefix, rows, visible.tril_(batch.prefix))

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
        token_ids = self.text_tokens(instruction, before=("image",)).token_ids
        if token_ids.count(self.image_token_id) != 1:
            raise BackboneError(
                f"The chat template of {self.settings.model} gives {token_ids.count(self.image_token_id)} "
                f"image tokens (id {self.image_token_id}) for one picture; expected exactly 1."
            )
        self._templates[instruction] = token_ids
        return token_ids

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

    [B, T, hidden] and lengths int64 [B] -> [B, hidden] float32.
    """
    real = torch.arange(states.shape[1], device=states.device) < lengths[:, None]  # [B, T]
    weights = real.to(torch.float32) / lengths[:, None]
    return (weights[..., None] * states.float()).sum(dim=1)  # not a product that autocast would lower


def _shown(picture: Image, prompts: PromptSettings) -> Image:
    """The picture as the image processor gets it."""
    return limit_aspect(fit_within(picture, prompts.max_image_side))
