"""Items encoded a second, against sentence-transformers and against a plain loop over transformers' own classes.

All contenders encode the same texts and the same pictures with the same weights, once in float32
and once in the dtype that `materialize` takes by default (bfloat16 where the processor multiplies
it), and must give the same vectors. The plain loop takes items as they come, 32 at a time, pads
them and pools with the attention mask. sentence-transformers (extra `bench`) sorts by length
itself; it is measured on the texts, because it loads pictures through classes that need
torchvision.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from common import matmul_flops, median, options, paired_ratio, report, take_turns
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

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
Job = Callable[[], Vectors]
OURS, PLAIN, THEIRS = "ours", "plain loop", "sentence-transformers"
TOLERANCE = {"float32": 1e-6, "fast": 1e-2}


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
        jobs: dict[tuple[str, str, str], Job] = {}
        loaded: dict[str, LoadedEncoder] = {}
        for dtype, tolerance in TOLERANCE.items():
            settings = {"model": str(model), "quantization": "none", "device": "cpu", "dtype": dtype}
            loaded[dtype] = unadapted(BackboneSettings.parse(**settings), PROMPTS)
            for kind, contenders in make_contenders(folder, model, loaded[dtype], items).items():
                check_equal({name: job() for name, job in contenders.items()}, tolerance)
                jobs |= {(kind, dtype, name): job for name, job in contenders.items()}
        seconds = take_turns({", ".join(key): job for key, job in jobs.items()}, rounds=arguments.rounds)
    fast = str(loaded["fast"].encoder.backbone.dtype).removeprefix("torch.")
    print(
        f"\n{len(items)} items, {loaded['fast'].dim} dimensions, {torch.get_num_threads()} threads; fast is {fast}"
    )
    ratios = {}
    for kind, dtype, name in jobs:
        theirs, ours = seconds[f"{kind}, {dtype}, {name}"], seconds[f"{kind}, {dtype}, {OURS}"]
        print(f"  {kind:10}{dtype:9}{name:22} {len(items) / median(theirs):8.1f} /s", end="")
        if name == OURS:
            print()
        else:
            ratio = ratios[f"{kind}, {dtype}, {name}"] = round(paired_ratio(theirs, ours), 3)
            print(f"   ours {ratio:.2f} times")
    both = sum(median(seconds[f"{kind}, float32, {OURS}"]) for kind in ("texts", "pictures"))
    achieved, peak = flops(loaded["float32"], items) / both, matmul_flops()
    share = f"{achieved / peak:.0%} of a 2048 x 2048 matrix product's {peak / 1e9:.0f}"
    print(f"  float32: {achieved / 1e9:.0f} GFLOP/s, {share}")
    theirs = THEIRS if f"texts, fast, {THEIRS}" in ratios else PLAIN
    package = THEIRS if theirs == THEIRS else "transformers"
    report(
        "encode",
        against=f"{package} {version(package)}, texts, both in {fast}",
        ratio=ratios[f"texts, fast, {theirs}"],
        ratios=ratios,
        share_of_matmul_flops=round(achieved / peak, 3),
    )


def make_contenders(
    folder: Path, model: Path, loaded: LoadedEncoder, items: Sequence[Item]
) -> dict[str, dict[str, Job]]:
    """Jobs that return text vectors, and jobs that return picture vectors."""
    backbone = loaded.encoder.backbone
    plain = AutoModel.from_pretrained(model, dtype=backbone.dtype).eval()
    texts = [text_prompt(item.fields, PROMPTS) or "" for item in items]
    pictures_alone = [replace(item, fields={}) for item in items]
    texts_alone = [replace(item, image=None) for item in items]
    jobs: dict[str, dict[str, Job]] = {
        "texts": {
            OURS: lambda: np.concatenate([s.text for s in encode_items(loaded, texts_alone, BATCH)]),
            PLAIN: lambda: plain_texts(backbone, plain, texts),
        },
        "pictures": {
            OURS: lambda: np.concatenate([s.image for s in encode_items(loaded, pictures_alone, BATCH)]),
            PLAIN: lambda: plain_pictures(backbone, plain, items),
        },
    }
    if encode_texts := sentence_transformers(folder, model, backbone, texts):
        jobs["texts"][THEIRS] = encode_texts
    return jobs


def plain_texts(backbone: Backbone, model: nn.Module, prompts: Sequence[str]) -> Vectors:
    """Texts as they come, padded batch by batch."""
    made = []
    for batch in batched(chat_texts(backbone, prompts)):
        tokens = backbone.tokenizer(batch, padding=True, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            states = model(**tokens).last_hidden_state
        made.append(pooled(states, tokens["attention_mask"]))
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
        with torch.inference_mode():
            states = model(**tokens, **vision, mm_token_type_ids=kinds).last_hidden_state
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
    tokenizer.mkdir(exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, tokenizer)
    transformer = Transformer(
        str(model), tokenizer_name_or_path=str(tokenizer), model_kwargs={"dtype": backbone.dtype}
    )
    modules = [transformer, Pooling(backbone.hidden_size, pooling_mode="mean")]
    encoder = SentenceTransformer(modules=modules, device="cpu")
    chats = chat_texts(backbone, prompts)

    def encode() -> Vectors:
        vectors: Vectors = encoder.encode(
            chats, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False
        )
        return vectors

    return encode


def check_equal(made: dict[str, Vectors], tolerance: float) -> None:
    """Everybody's vectors point where ours do: 1 - cosine is at most `tolerance`."""
    for name, vectors in made.items():
        least = float((made[OURS] * vectors).sum(axis=1).min())
        if 1 - least > tolerance:
            raise SystemExit(f"{name} gives other vectors: cosine {least}")


def flops(loaded: LoadedEncoder, items: Sequence[Item]) -> int:
    """Floating-point operations of encoding the items, as torch counts them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the counter sees the operations of its own thread
    with FlopCounterMode(display=False) as counter:
        list(encode_items(loaded, items, BATCH))
    torch.set_num_threads(threads)
    total: int = counter.get_total_flops()
    return total


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
