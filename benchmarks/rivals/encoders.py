"""What encodes items today: a loop over transformers' own classes, and sentence-transformers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModel

from sda_features.catalog.images import fit_within
from sda_features.catalog.prompts import text_prompt
from sda_features.catalog.rows import Item
from sda_features.config import PromptSettings
from sda_features.lvlm.backbone import Backbone
from sda_features.lvlm.checkpoint import LoadedEncoder

BATCH = 32
PROMPTS = PromptSettings()
Vectors = NDArray[np.float32]
Job = Callable[[], Vectors]


def plain_jobs(folder: Path, model: Path, loaded: LoadedEncoder, items: Sequence[Item]) -> dict[str, Job]:
    """The loop over transformers' own classes."""
    backbone = loaded.encoder.backbone
    plain = AutoModel.from_pretrained(model, dtype=backbone.dtype).eval()
    return {
        "texts": lambda: plain_texts(backbone, plain, texts_of(items)),
        "pictures": lambda: plain_pictures(backbone, plain, items),
    }


def their_jobs(folder: Path, model: Path, loaded: LoadedEncoder, items: Sequence[Item]) -> dict[str, Job]:
    """sentence-transformers on the texts; nothing if it is not installed."""
    try:
        version("sentence-transformers")
    except PackageNotFoundError:
        return {}
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    tokenizer = folder / "tokenizer"  # alone in a folder, so that no video processor is looked for
    tokenizer.mkdir(exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, tokenizer)
    transformer = Transformer(
        str(model),
        tokenizer_name_or_path=str(tokenizer),
        model_kwargs={"dtype": loaded.encoder.backbone.dtype},
    )
    modules = [transformer, Pooling(loaded.encoder.backbone.hidden_size, pooling_mode="mean")]
    encoder = SentenceTransformer(modules=modules, device="cpu")
    chats = chat_texts(loaded.encoder.backbone, texts_of(items))

    def encode() -> Vectors:
        vectors: Vectors = encoder.encode(
            chats, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False
        )
        return vectors

    return {"texts": encode}


def plain_texts(backbone: Backbone, model: nn.Module, prompts: Sequence[str]) -> Vectors:
    """Texts as they come, padded batch by batch."""
    made = []
    for batch in batched(chat_texts(backbone, prompts)):
        tokens = backbone.tokenizer(batch, padding=True, return_tensors="pt", add_special_tokens=False)
        made.append(_encoded(backbone, model, tokens))
    return np.concatenate(made)


def plain_pictures(backbone: Backbone, model: nn.Module, items: Sequence[Item]) -> Vectors:
    """Pictures as they come; one placeholder token becomes as many as the picture has visual tokens."""
    content = [{"type": "image"}, {"type": "text", "text": PROMPTS.image_instruction}]
    template = backbone.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    placeholder = backbone.tokenizer.convert_ids_to_tokens(backbone.image_token_id)
    made = []
    for batch in batched(items):
        pictures = [
            fit_within(item.image, PROMPTS.max_image_side) for item in batch if item.image is not None
        ]
        vision = backbone.image_processor(images=pictures, return_tensors="pt")
        counts = vision["image_grid_thw"].prod(1) // backbone.image_processor.merge_size**2
        prompts = [template.replace(placeholder, placeholder * int(count)) for count in counts]
        tokens = backbone.tokenizer(prompts, padding=True, return_tensors="pt", add_special_tokens=False)
        kinds = (tokens["input_ids"] == backbone.image_token_id).int()
        made.append(_encoded(backbone, model, {**tokens, **vision, "mm_token_type_ids": kinds}))
    return np.concatenate(made)


def _encoded(backbone: Backbone, model: nn.Module, inputs: Mapping[str, Tensor]) -> Vectors:
    with torch.inference_mode():
        states = model(**{name: of.to(backbone.device) for name, of in inputs.items()}).last_hidden_state
    return pooled(states.cpu(), inputs["attention_mask"])


def texts_of(items: Sequence[Item]) -> list[str]:
    """The text prompts."""
    return [text_prompt(item.fields, PROMPTS) or "" for item in items]


def chat_texts(backbone: Backbone, prompts: Sequence[str]) -> list[str]:
    """Prompts in the chat format that all contenders encode."""
    chats = [[{"role": "user", "content": [{"type": "text", "text": prompt}]}] for prompt in prompts]
    formatted: list[str] = backbone.tokenizer.apply_chat_template(
        chats, tokenize=False, add_generation_prompt=True
    )
    return formatted


def pooled(states: Tensor, mask: Tensor) -> Vectors:
    """Mean over the attention mask, normalised."""
    weights = mask.unsqueeze(-1).float()
    vectors: Vectors = F.normalize((states.float() * weights).sum(1) / weights.sum(1), dim=1).numpy()
    return vectors


def batched(values: Sequence[object]) -> Iterator[list]:  # type: ignore[type-arg]
    """Lists of up to `BATCH` values."""
    rest = iter(values)
    while batch := list(islice(rest, BATCH)):
        yield batch
