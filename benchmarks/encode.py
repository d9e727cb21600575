"""Items encoded a second, against sentence-transformers and against a plain loop over transformers' own classes.

All contenders encode the same items with the same weights, once in float32 and once in the dtype
that `materialize` takes by default (bfloat16 where the processor multiplies it), and must give the
same vectors. The plain loop takes items as they come, 32 at a time, pads them and pools with the
attention mask. sentence-transformers sorts texts by length itself; it encodes the texts only,
because it loads a vision-language model's pictures through classes that need torchvision, and the
plain loop then does the pictures for it. Without it (extra `bench`) the plain loop stands alone.
"""

from __future__ import annotations

import shutil
import tempfile
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
Pair = tuple[Vectors, Vectors]
Job = Callable[[], Pair]
THEIRS = "sentence-transformers"


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
        texts = [text_prompt(item.fields, PROMPTS) or "" for item in items]
        jobs: dict[str, Job] = {}
        loaded: dict[str, LoadedEncoder] = {}
        for dtype in ("float32", "fast"):
            settings = {"model": str(model), "quantization": "none", "device": "cpu", "dtype": dtype}
            loaded[dtype] = unadapted(BackboneSettings.parse(**settings), PROMPTS)
            contenders = make_contenders(folder, model, loaded[dtype], items, texts)
            check_equal(
                {name: job() for name, job in contenders.items()}, 1e-6 if dtype == "float32" else 1e-2
            )
            jobs |= {f"{name}, {dtype}": job for name, job in contenders.items()}
        seconds = take_turns(jobs, rounds=arguments.rounds)
    threads, fast = torch.get_num_threads(), str(loaded["fast"].encoder.backbone.dtype).removeprefix("torch.")
    print(f"\n{len(items)} items, {loaded['fast'].dim} dimensions, {threads} threads; fast is {fast}")
    for title, values in seconds.items():
        print(f"  {title:32} {len(items) / median(values):8.1f} items/s")
    achieved, peak = flops(loaded["float32"], items) / median(seconds["ours, float32"]), matmul_flops()
    share = f"{achieved / peak:.0%} of a 2048 x 2048 matrix product's {peak / 1e9:.0f}"
    print(f"  float32: {achieved / 1e9:.0f} GFLOP/s, {share}")
    theirs = THEIRS if f"{THEIRS}, fast" in seconds else "plain loop"
    package = THEIRS if theirs == THEIRS else "transformers"
    ratios = {
        f"{name}, {dtype}": round(paired_ratio(seconds[f"{name}, {dtype}"], seconds[f"ours, {dtype}"]), 3)
        for name in {theirs, "plain loop"}
        for dtype in loaded
    }
    report(
        "encode",
        against=f"{package} {version(package)}, both in {fast}",
        ratio=ratios[f"{theirs}, fast"],
        ratios=ratios,
        items_per_second=round(len(items) / median(seconds["ours, fast"]), 1),
        share_of_matmul_flops=round(achieved / peak, 3),
    )


def make_contenders(
    folder: Path, model: Path, loaded: LoadedEncoder, items: Sequence[Item], texts: Sequence[str]
) -> dict[str, Job]:
    """Jobs that return text vectors and picture vectors."""
    backbone = loaded.encoder.backbone

    def ours() -> Pair:
        shards = list(encode_items(loaded, items, BATCH))
        return np.concatenate([s.text for s in shards]), np.concatenate([s.image for s in shards])

    jobs: dict[str, Job] = {
        "ours": ours,
        "plain loop": lambda: (plain_texts(backbone, texts), plain_pictures(backbone, items)),
    }
    encode_texts = sentence_transformers(folder, model, backbone, texts)
    if encode_texts is not None:
        jobs[THEIRS] = lambda: (encode_texts(), plain_pictures(backbone, items))
    return jobs


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


def check_equal(made: dict[str, Pair], tolerance: float) -> None:
    """Everybody's vectors point where ours do: 1 - cosine is at most `tolerance`."""
    for name, pair in made.items():
        for ours, theirs in zip(made["ours"], pair, strict=True):
            least = float((ours * theirs).sum(axis=1).min())
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


def matmul_flops(size: int = 2048) -> float:
    """FLOP/s of a large float32 matrix product on this machine."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = take_turns({"matmul": lambda: a @ b}, rounds=5)["matmul"]
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
