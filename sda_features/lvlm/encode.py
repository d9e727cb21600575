"""Items to vectors: the model runs one batch while threads read, tokenise and patch the next ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sda_features.catalog.rows import Item
from sda_features.lvlm.encoded_items import EncodedItems
from sda_features.lvlm.heap import keep_freed_memory
from sda_features.lvlm.item_encoder import Batch, ItemEncoder
from sda_features.lvlm.memory import memory_advice
from sda_features.lvlm.prefetch import prefetch

BATCHES_AHEAD = 2  # prepared while the model runs
TYPICAL_TOKENS = 256  # of a sequence; longer ones make smaller batches, so memory follows batch_size alone


@dataclass(frozen=True, eq=False)
class _Step:
    """One batch of a shard, the positions of its rows there, its cut texts, and whether it is the shard's last."""

    shard: list[Item]
    rows: list[int]
    batch: Batch
    texts_cut: int
    last: bool


def encode_items(
    loaded: ItemEncoder,
    items: Iterable[Item],
    batch_size: int = 32,
    shard_rows: int = 1024,
    advance: Callable[[int], object] = lambda vectors: None,
) -> Iterator[EncodedItems]:
    """Yield the vectors of every `shard_rows` items, in order.

    A vector does not depend on the batch or shard it is made in, up to rounding. `items` is read in
    a thread, at most a shard ahead; what it raises is raised here, after the shards before it.

    Args:
        items: usable catalogue rows; those without text and picture are left out, because the
            catalogue's report already lists them.
        batch_size: sequences encoded together; fewer where they are long.
        shard_rows: items that are sorted by length and yielded together. At most three shards of
            prompts and scaled pictures are in memory.
        advance: told after each batch how many vectors it made, for progress bars.
    """
    with (
        prefetch(_usable(loaded, items), shard_rows) as usable,
        prefetch(_steps(loaded, usable, batch_size, shard_rows), BATCHES_AHEAD) as steps,
    ):
        made: dict[str, list[tuple[list[int], Tensor]]] = {"text": [], "image": []}
        texts_cut = 0
        for step, vectors in _encoded(loaded, steps):
            made[step.batch.modality].append((step.rows, vectors))
            texts_cut += step.texts_cut
            advance(len(step.rows))
            if step.last:
                yield EncodedItems(
                    [item.item_id for item in step.shard],
                    [item.content_hash for item in step.shard],
                    *_in_order(made["text"], len(step.shard), loaded.dim),
                    *_in_order(made["image"], len(step.shard), loaded.dim),
                    texts_cut,
                )
                made, texts_cut = {"text": [], "image": []}, 0


def _encoded(loaded: ItemEncoder, steps: Iterator[_Step]) -> Iterator[tuple[_Step, Tensor]]:
    """Steps and their vectors, in order.

    On a CPU each core takes a batch of its own: operations of one batch, shared by all cores, are
    too small to keep them busy.
    """

    def encode(step: _Step) -> Tensor:
        with torch.inference_mode(), memory_advice("--batch-size", "--quantization nf4"):
            return loaded.vectors(step.batch).cpu()

    threads = 1
    if loaded.device.type == "cpu":
        threads = torch.get_num_threads()
        keep_freed_memory()
    if threads == 1:
        yield from ((step, encode(step)) for step in steps)
        return
    with torch.inference_mode():  # bitsandbytes repacks 4-bit weights when they are first used: once, alone
        loaded.vectors(loaded.collate([loaded.text_tokens("")], "text"))
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as workers:
            running = ((step, workers.submit(encode, step)) for step in steps)
            with prefetch(running, threads) as started:
                for step, vectors in started:
                    yield step, vectors.result()
    finally:
        torch.set_num_threads(threads)


def _usable(loaded: ItemEncoder, items: Iterable[Item]) -> Iterator[Item]:
    """The items that have a text or a picture, the picture scaled down while it waits."""
    for item in items:
        if item.image is not None and not item.shrunk:
            item = replace(item, image=loaded.shrink(item.image), shrunk=True)
        if item.fields or item.image is not None:
            yield item


def _steps(loaded: ItemEncoder, items: Iterator[Item], batch_size: int, shard_rows: int) -> Iterator[_Step]:
    """Batches of sequences of similar length, shard after shard; pictures are patched batch by batch."""
    while shard := list(islice(items, shard_rows)):
        prompts = {row: loaded.prompt(item.fields) for row, item in enumerate(shard)}
        texts = {row: loaded.text_tokens(text) for row, text in prompts.items() if text is not None}
        pictures = {row: item.image for row, item in enumerate(shard) if item.image is not None}
        plan = [
            *_plan("text", {row: len(text.token_ids) for row, text in texts.items()}, batch_size),
            *_plan("image", {row: loaded.image_length(p) for row, p in pictures.items()}, batch_size),
        ]
        for number, (modality, rows) in enumerate(plan, start=1):
            sequences = [
                texts[row] if modality == "text" else loaded.image_tokens(pictures[row]) for row in rows
            ]
            cut = sum(texts[row].cut for row in rows) if modality == "text" else 0
            yield _Step(shard, rows, loaded.collate(sequences, modality), cut, number == len(plan))


def _plan(modality: str, lengths: dict[int, int], batch_size: int) -> Iterator[tuple[str, list[int]]]:
    """Cut rows, longest first, into batches of at most `batch_size` rows and their typical tokens."""
    by_length = sorted(lengths, key=lambda row: lengths[row], reverse=True)
    while by_length:
        fitting = batch_size * TYPICAL_TOKENS // lengths[by_length[0]]
        count = max(1, min(batch_size, fitting))
        yield modality, by_length[:count]
        by_length = by_length[count:]


def _in_order(
    made: Sequence[tuple[list[int], Tensor]], count: int, dim: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Scatter batches of vectors to their rows: matrix [count, dim] and which rows were made [count]."""
    matrix = np.zeros((count, dim), np.float32)
    found = np.zeros(count, np.bool_)
    for rows, vectors in made:
        matrix[rows] = vectors.numpy()
        found[rows] = True
    return matrix, found
