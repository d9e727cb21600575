"""Items encoded a second, against sentence-transformers and against a plain loop over transformers' own classes.

All contenders encode the same items with the same model. Over float32 weights they must give the same
vectors; `materialize` by default takes bfloat16 where the processor multiplies it, and is timed both ways.
The plain loop takes items as they come, 32 at a time, pads them and pools with the attention mask.
sentence-transformers sorts texts by length itself; it encodes the texts only, because it loads a
vision-language model's pictures through classes that need torchvision, and the plain loop then
does the pictures for it. Without sentence-transformers (extra `bench`) the plain loop stands alone.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from common import median, options, paired_ratio, report, take_turns
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sda_features.catalog import Catalog, Item
from sda_features.config import BackboneSettings, CatalogSettings, PromptSettings
from sda_features.demo.catalogue import make_catalogue
from sda_features.demo.model import build_tiny_model
from sda_features.images import fit_within
from sda_features.lvlm.backbone import Backbone
from sda_features.lvlm.checkpoint import LoadedEncoder, unadapted
from sda_features.lvlm.encode import encode_items
from sda_features.prompts import text_prompt

BATCH = 32
PROMPTS = PromptSettings()
Vectors = NDArray[np.float32]
Job = Callable[[], object]


def main() -> None:
    """Measure and print."""
    arguments = options(
        __doc__ or "",
        ("--model", {"help": "a Qwen-VL checkpoint; none: a generated one of width 256, 4 layers"}),
        ("--catalog", {"type": Path, "help": "items to encode; none: generated ones"}),
        ("--items", {"type": int, "help": "how many of them"}),
        ("--rounds", {"type": int, "default": 3}),
    )
    count = arguments.items or (192 if arguments.quick else 1000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        items = read_items(arguments.catalog or generated_catalogue(folder, count), count)
        model = Path(arguments.model or generated_model(folder, items))
        settings = {"model": str(model), "quantization": "none", "device": "cpu"}
        loaded = unadapted(BackboneSettings.parse(**settings, dtype="float32"), PROMPTS)
        fast = unadapted(BackboneSettings.parse(**settings, dtype="fast"), PROMPTS)
        texts = [text_prompt(item.fields, PROMPTS) or "" for item in items]
        jobs: dict[str, Job] = {
            "ours": lambda: list(encode_items(fast, items, BATCH)),
            "ours, float32": lambda: list(encode_items(loaded, items, BATCH)),
            "plain loop": lambda: (
                plain_texts(loaded.encoder.backbone, texts),
                plain_pictures(loaded.encoder.backbone, items),
            ),
        }
        against = f"a plain loop over transformers {version('transformers')}"
        competitor = sentence_transformers(folder, model, loaded.encoder.backbone, texts)
        if competitor is not None:
            encode_texts = competitor
            jobs["sentence-transformers"] = lambda: (
                encode_texts(),
                plain_pictures(loaded.encoder.backbone, items),
            )
            jobs["ours, float32, texts"] = lambda: list(encode_items(loaded, texts_only(items), BATCH))
            jobs["ours, texts"] = lambda: list(encode_items(fast, texts_only(items), BATCH))
            jobs["sentence-transformers, texts"] = encode_texts
            against = f"sentence-transformers {version('sentence-transformers')} (pictures: the plain loop)"
        check_equal(loaded, items, texts, competitor)
        seconds = take_turns(jobs, rounds=arguments.rounds, clock=time.process_time)
        dtype = fast.encoder.backbone.dtype
        print(
            f"\n{len(items)} items, {loaded.encoder.dim} dimensions, one thread, CPU seconds; ours in {dtype}"
        )
        for title, values in seconds.items():
            print(f"  {title:30} {len(items) / median(values):8.1f} items/s")
        achieved = flops(loaded, items) / median(seconds["ours, float32"])
        peak = matmul_flops()
        print(
            f"  {achieved / 1e9:.0f} GFLOP/s, {achieved / peak:.0%} of a 2048 x 2048 matrix product's {peak / 1e9:.0f}"
        )
        theirs = "plain loop" if competitor is None else "sentence-transformers"
        report(
            "encode",
            against=against,
            ratio=paired_ratio(seconds[theirs], seconds["ours"]),
            plain_loop_ratio=round(paired_ratio(seconds["plain loop"], seconds["ours"]), 3),
            float32_ratio=round(paired_ratio(seconds[theirs], seconds["ours, float32"]), 3),
            dtype=str(dtype),
            least_cosine_to_float32=round(least_cosine(loaded, fast, items), 6),
            items_per_second=round(len(items) / median(seconds["ours"]), 1),
            share_of_matmul_flops=round(achieved / peak, 3),
        )


def plain_texts(backbone: Backbone, prompts: Sequence[str]) -> Vectors:
    """Texts as they come, padded batch by batch."""
    made = []
    for batch in batched(chat_texts(backbone, prompts)):
        tokens = backbone.tokenizer(batch, padding=True, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            states = backbone.model(**tokens).last_hidden_state
        made.append(pooled(states, tokens["attention_mask"]))
    return np.concatenate(made)


def plain_pictures(backbone: Backbone, items: Sequence[Item]) -> Vectors:
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
        with torch.inference_mode():
            states = backbone.model(**tokens, **vision, mm_token_type_ids=kinds).last_hidden_state
        made.append(pooled(states, tokens["attention_mask"]))
    return np.concatenate(made)


def sentence_transformers(
    folder: Path, model: Path, backbone: Backbone, prompts: Sequence[str]
) -> Callable[[], Vectors] | None:
    """A job that encodes the texts with sentence-transformers; None if it is not installed."""
    try:
        version("sentence-transformers")
    except PackageNotFoundError:
        return None
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    tokenizer = folder / "tokenizer"  # alone in a folder, so that no video processor is looked for
    tokenizer.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, tokenizer)
    transformer = Transformer(str(model), tokenizer_name_or_path=str(tokenizer))
    modules = [transformer, Pooling(backbone.hidden_size, pooling_mode="mean")]
    encoder = SentenceTransformer(modules=modules, device="cpu")
    chats = chat_texts(backbone, prompts)

    def encode() -> Vectors:
        vectors: Vectors = encoder.encode(
            chats, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False
        )
        return vectors

    return encode


def check_equal(
    loaded: LoadedEncoder,
    items: Sequence[Item],
    texts: Sequence[str],
    competitor: Callable[[], Vectors] | None,
) -> None:
    """Everybody gives the same vectors, up to rounding."""
    shards = list(encode_items(loaded, items, BATCH))
    ours = {name: np.concatenate([getattr(shard, name) for shard in shards]) for name in ("text", "image")}
    backbone = loaded.encoder.backbone
    np.testing.assert_allclose(plain_texts(backbone, texts), ours["text"], atol=1e-4)
    np.testing.assert_allclose(plain_pictures(backbone, items), ours["image"], atol=1e-4)
    if competitor is not None:
        np.testing.assert_allclose(competitor(), ours["text"], atol=1e-4)


def least_cosine(loaded: LoadedEncoder, fast: LoadedEncoder, items: Sequence[Item]) -> float:
    """Smallest cosine of a vector of both encoders."""
    a, b = (
        np.concatenate([np.concatenate([s.text, s.image]) for s in encode_items(e, items)])
        for e in (loaded, fast)
    )
    return float((a * b).sum(axis=1).min())


def flops(loaded: LoadedEncoder, items: Sequence[Item]) -> int:
    """Floating-point operations of encoding the items, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        list(encode_items(loaded, items, BATCH))
    total: int = counter.get_total_flops()
    return total


def matmul_flops(size: int = 2048) -> float:
    """FLOP/s of a large float32 matrix product on this machine."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = take_turns({"matmul": lambda: a @ b}, rounds=5, clock=time.process_time)["matmul"]
    return 2 * size**3 / median(seconds)


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
    vectors: Vectors = F.normalize((states * weights).sum(1) / weights.sum(1), dim=1).numpy()
    return vectors


def batched(values: Sequence[object]) -> Iterator[list]:  # type: ignore[type-arg]
    """Lists of up to `BATCH` values."""
    rest = iter(values)
    while batch := list(islice(rest, BATCH)):
        yield batch


def texts_only(items: Sequence[Item]) -> list[Item]:
    """The items without their pictures."""
    return [Item(item.row, item.item_id, item.fields, None, item.content_hash) for item in items]


def read_items(path: Path, count: int) -> list[Item]:
    """The first items that have both modalities."""
    catalog = Catalog(CatalogSettings.parse(path=path, max_bad_rows=1.0))
    return list(islice((item for item in catalog.items() if item.image is not None and item.fields), count))


def generated_catalogue(folder: Path, count: int) -> Path:
    """Products of the demo's shop."""
    path = folder / "items.parquet"
    pq.write_table(make_catalogue(count, spoil=False).table, path)
    return path


def generated_model(folder: Path, items: Sequence[Item]) -> Path:
    """A randomly initialised checkpoint whose tokenizer knows the texts."""
    path = folder / "model"
    texts = ["; ".join(item.fields.values()) for item in items]
    build_tiny_model(path, texts, hidden_size=256, layers=4, vision_layers=4, vocabulary=4096)
    return path


if __name__ == "__main__":
    main()
