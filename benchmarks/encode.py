"""Items encoded a second, against sentence-transformers and against a plain loop over transformers' own classes.

All contenders encode the same texts and the same pictures with the same weights, once in float32
and once in the dtype that `materialize` takes by default (bfloat16 where the processor multiplies
it), and must give the same vectors. The plain loop takes items as they come, 32 at a time, pads
them and pools with the attention mask. sentence-transformers (extra `bench`) sorts by length
itself; it is measured on the texts, because it loads pictures through classes that need
torchvision. Each contender has a process of its own.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import islice, product
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow.parquet as pq
import torch
from common import matmul_flops, median, options, paired_ratio, report, take_turns
from rivals.encoders import BATCH, PROMPTS, Job, Vectors, plain_jobs, their_jobs
from torch.utils.flop_counter import FlopCounterMode

from sda_features.catalog.rows import Catalog, Item
from sda_features.config import BackboneSettings, CatalogSettings
from sda_features.demo.catalogue import make_catalogue
from sda_features.demo.model import build_tiny_model
from sda_features.lvlm.checkpoint import LoadedEncoder, unadapted
from sda_features.lvlm.encode import encode_items
from sda_features.lvlm.loading import pick_dtype

OURS, PLAIN, THEIRS = "ours", "plain loop", "sentence-transformers"
TOLERANCE = {"float32": 1e-6, "fast": 1e-2}


def main() -> None:
    """Measure and print."""
    arguments = options(
        __doc__ or "",
        ("--model", {"help": "a Qwen-VL checkpoint; none: a generated one of width 256, 4 layers"}),
        ("--catalog", {"type": Path, "help": "items to encode; none: generated ones"}),
        ("--items", {"type": int, "help": "how many of them"}),
        ("--rounds", {"type": int}),
    )
    count = arguments.items or (128 if arguments.quick else 1000)
    rounds = arguments.rounds or (2 if arguments.quick else 3)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        catalog = arguments.catalog or generated_catalogue(folder, count)
        model = Path(arguments.model or generated_model(folder, read_items(catalog, count)))
        sides = [stack.enter_context(Side(name, folder, model, catalog, count)) for name in JOBS]
        sides = [side for side in sides if side.jobs]
        seconds: dict[tuple[str, str, str], list[float]] = {}
        for kind, dtype in sides[0].jobs:
            able = {side.name: side for side in sides if (kind, dtype) in side.jobs}
            check_equal({name: side.ask(kind, dtype) for name, side in able.items()}, TOLERANCE[dtype])
            turns = {name: partial(side.ask, kind, dtype) for name, side in able.items()}
            times = take_turns(turns, rounds=rounds, warmup=0)
            seconds |= {(kind, dtype, name): times[name] for name in able}
        for dtype, name in product(TOLERANCE, (OURS, PLAIN)):
            modalities = (seconds[kind, dtype, name] for kind in ("texts", "pictures"))
            seconds["both", dtype, name] = [sum(turn) for turn in zip(*modalities, strict=True)]
        operations = flops(load(model, "float32"), read_items(catalog, count))
    fast = str(pick_dtype("fast", torch.device("cpu"))).removeprefix("torch.")
    print(f"\n{count} items, {torch.get_num_threads()} threads; fast is {fast}")
    ratios = {}
    for (kind, dtype, name), theirs in seconds.items():
        print(f"  {kind:10}{dtype:9}{name:22} {count / median(theirs):8.1f} /s", end="")
        if name == OURS:
            print()
        else:
            ratio = ratios[f"{kind}, {dtype}, {name}"] = round(
                paired_ratio(theirs, seconds[kind, dtype, OURS]), 3
            )
            print(f"   ours {ratio:.2f} times")
    achieved, peak = operations / median(seconds["both", "float32", OURS]), matmul_flops()
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


class Side:
    """A contender in a process of its own: what one asks of the C library's heap must not serve another."""

    def __init__(self, name: str, *inputs: object):
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, *inputs))
        self._process.start()
        theirs.close()
        self.jobs: list[tuple[str, str]] = self._connection.recv()

    def ask(self, *what: str) -> Vectors:
        """Do a job; its vectors."""
        self._connection.send(what)
        vectors: Vectors = self._connection.recv()
        return vectors

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()  # ends it
        self._process.join()


def serve(connection: Connection, name: str, folder: Path, model: Path, catalog: Path, count: int) -> None:
    """The life of a contender: tell its jobs, then do one at a time until nobody asks."""
    items = read_items(catalog, count)
    jobs = {
        (kind, dtype): job
        for dtype in TOLERANCE
        for kind, job in JOBS[name](folder, model, load(model, dtype), items).items()
    }
    connection.send(list(jobs))
    with contextlib.suppress(EOFError):
        while True:
            connection.send(jobs[connection.recv()]())


def load(model: Path, dtype: str) -> LoadedEncoder:
    """The model as it was published, with our classes."""
    settings = {"model": str(model), "quantization": "none", "device": "cpu", "dtype": dtype}
    return unadapted(BackboneSettings.parse(**settings), PROMPTS)


def our_jobs(folder: Path, model: Path, loaded: LoadedEncoder, items: Sequence[Item]) -> dict[str, Job]:
    """`encode_items`, as `materialize` calls it."""
    pictures_alone = [replace(item, fields={}) for item in items]
    texts_alone = [replace(item, image=None) for item in items]
    return {
        "texts": lambda: np.concatenate([s.text for s in encode_items(loaded, texts_alone, BATCH)]),
        "pictures": lambda: np.concatenate([s.image for s in encode_items(loaded, pictures_alone, BATCH)]),
    }


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


JOBS = {OURS: our_jobs, PLAIN: plain_jobs, THEIRS: their_jobs}


if __name__ == "__main__":
    main()
