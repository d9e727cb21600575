"""The part of gpu.py that encodes: ours, a plain loop over transformers, sentence-transformers."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from common import median, paired_ratio, take_turns
from PIL import Image
from rivals.encoders import BATCH, PROMPTS, plain_pictures, plain_texts, texts_of
from torch.utils.flop_counter import FlopCounterMode

from sda_features.catalog.rows import Item
from sda_features.config import AdapterSettings, ProjectionSettings
from sda_features.lvlm.backbone import Backbone
from sda_features.lvlm.checkpoint import LoadedEncoder
from sda_features.lvlm.encode import encode_items
from sda_features.lvlm.encoder import PromptEncoder

if TYPE_CHECKING:
    from gpu import Run

WORDS = (
    "cotton",
    "walnut",
    "steel",
    "linen",
    "oak",
    "copper",
    "wool",
    "glass",
    "shirt",
    "kettle",
    "table",
    "lamp",
)
JPEG_SIDES, JPEGS = (400, 1000, 1500), 10
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # cosine distance


def encoding(run: Run) -> None:
    """Items a second, texts and pictures apart; vectors must agree before anything is timed."""
    backbone = run.model("none")
    encoder = PromptEncoder(backbone, AdapterSettings(kind="none"), ProjectionSettings()).eval()
    loaded = LoadedEncoder(encoder, PROMPTS, True, "benchmark", encoder.dim)
    items = list(make_items(6 if run.tiny else 256, 56 if run.tiny else 400))
    texts = [Item(of.row, of.item_id, of.fields, None, of.content_hash) for of in items]
    pictures = [Item(of.row, of.item_id, {}, of.image, of.content_hash) for of in items]
    for kind, chosen in (("texts", texts), ("pictures", pictures)):

        def ours(chosen: list[Item] = chosen) -> np.ndarray:
            made = list(encode_items(loaded, chosen, BATCH))
            run.wait()
            return np.concatenate([of.text if of.text_found.any() else of.image for of in made])

        def theirs(chosen: list[Item] = chosen) -> np.ndarray:
            return plain(backbone, chosen)

        distance = float((1 - (ours() * theirs()).sum(1)).max())
        if distance > TOLERANCE.get(run.dtype, 2e-2):
            raise ValueError(f"{kind}: vectors differ by a cosine distance of {distance:.1e}")
        seconds = take_turns({"ours": ours, "plain": theirs}, rounds=1 if run.tiny else 3, warmup=0)
        ratio = paired_ratio(seconds["plain"], seconds["ours"])
        operations = flops(backbone, chosen)
        share = operations / median(seconds["ours"]) / run.figures["matmul_flops"]
        run.row(
            f"{kind} encoded, {run.name}",
            f"{len(chosen) / median(seconds['ours']):.1f} /s, plain loop / ours {ratio:.2f}, {share:.0%} of the matrix "
            f"rate, cosine distance {distance:.0e}",
            **{kind: {"per_second": len(chosen) / median(seconds["ours"]), "ratio": ratio, "share": share}},
        )
    prepared(run, loaded)
    run.row(
        "sentence-transformers", "not measured here: it loads weights from files; see benchmarks/encode.py"
    )


def prepared(run: Run, loaded: LoadedEncoder) -> None:
    """JPEGs that one core decodes, scales and patches a second: as many cores are needed as the GPU is faster."""
    rates = {}
    for side in JPEG_SIDES:
        stream = io.BytesIO()
        coarse = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side, side)).save(stream, "JPEG", quality=90)
        began = time.process_time()
        for _ in range(JPEGS):
            loaded.image_tokens(loaded.shrink(Image.open(io.BytesIO(stream.getvalue())).convert("RGB")))
        rates[side] = JPEGS / (time.process_time() - began)
        run.row(f"JPEGs of {side} pixels made into patches", f"{rates[side]:.0f} a core and second")
    run.figures["pictures_a_core"] = rates


def make_items(count: int, side: int) -> Iterator[Item]:
    """Items with texts of different lengths, and noise for a picture."""
    random = np.random.default_rng(1)
    for number in range(count):
        fields = {f"field {n}": " ".join(random.choice(WORDS, 12)) for n in range(1 + number % 6)}
        picture = Image.fromarray(
            random.integers(0, 256, (side, side + 28 * (number % 3), 3), dtype=np.uint8)
        )
        yield Item(number + 1, str(number), fields, picture, str(number))


class TransformersAttention:
    """transformers' own attention in a model of ours, inside the block."""

    def __init__(self, backbone: Backbone):
        model: Any = backbone.model
        self._configs = [model.language_model.config, model.visual.config]

    def __enter__(self) -> None:
        self._ours = [config._attn_implementation for config in self._configs]
        for config in self._configs:
            config._attn_implementation = "sdpa"

    def __exit__(self, *error: object) -> None:
        for config, ours in zip(self._configs, self._ours, strict=True):
            config._attn_implementation = ours


def plain(backbone: Backbone, items: list[Item]) -> np.ndarray:
    """Vectors of texts, or of pictures, by a loop over transformers' own classes."""
    with TransformersAttention(backbone):
        if items[0].fields:
            return plain_texts(backbone, backbone.model, texts_of(items))
        return plain_pictures(backbone, backbone.model, items)


def flops(backbone: Backbone, items: list[Item]) -> float:
    """Floating-point operations of all items by transformers' own forward pass, from one batch of them."""
    some = items[: min(len(items), BATCH)]
    with FlopCounterMode(display=False) as counter:
        plain(backbone, some)
    return counter.get_total_flops() * len(items) / len(some)
