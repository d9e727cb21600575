import io
import itertools
import signal
import threading
import weakref
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from sda_features.catalog.prompts import text_prompt
from sda_features.catalog.rows import Item
from sda_features.config import PromptSettings
from sda_features.lvlm.backbone import Prompt, mean_pool
from sda_features.lvlm.checkpoint import LoadedEncoder, unadapted
from sda_features.lvlm.encode import BATCHES_AHEAD, TYPICAL_TOKENS, EncodedItems, _plan, encode_items
from sda_features.lvlm.prefetch import prefetch
from tests.lvlm.conftest import ARCHITECTURES, PROMPTS, TEXTS, MakeBackbone, Models, picture, png
from tests.shop import on_cpu

SIZES = [(70, 56), (56, 84), (112, 56), (300, 30)]


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> LoadedEncoder:
    return unadapted(on_cpu(tiny_model, dtype="float32"), PROMPTS)


def make_item(number: int) -> Item:
    """Lengths and pictures vary; item 3 has no picture, item 5 no text, item 7 neither."""
    title = f"{TEXTS[number % 3]} {'long ' * (number % 5)}{number}"
    told = {} if number in (5, 7) else {"title": title}
    image = None if number in (3, 7) else picture(number, SIZES[number % len(SIZES)])
    return Item(number + 1, f"i{number}", told, image, f"hash{number}")


def one_by_one(loaded: LoadedEncoder, items: list[Item]) -> dict[str, np.ndarray]:
    """The plain twin: each sequence alone in its batch."""
    backbone = loaded.encoder.backbone

    def vector(prompt: Prompt, modality: str) -> np.ndarray:
        with torch.no_grad():
            return F.normalize(loaded.encoder(backbone.collate([prompt], modality)), dim=1)[0].numpy()

    text, image = np.zeros((2, len(items), loaded.encoder.dim), np.float32)
    for row, item in enumerate(items):
        if item.fields:
            text[row] = vector(backbone.text_tokens(text_prompt(item.fields, loaded.prompts)), "text")
        if item.image:
            image[row] = vector(backbone.image_tokens(item.image, loaded.prompts), "image")
    return {"text": text, "image": image}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_batching_gives_the_vectors_of_single_sequences_in_catalogue_order(
    tiny_models: Models, architecture: str
) -> None:
    loaded = unadapted(on_cpu(tiny_models[architecture], dtype="float32"), PROMPTS)
    items = [make_item(number) for number in range(20)]
    kept = [item for item in items if item.item_id != "i7"]
    expected = one_by_one(loaded, kept)
    assert np.abs(expected["text"][0] - expected["text"][1]).max() > 1e-2, "vacuous: vectors are alike"
    for batch_size, shard_rows in ((32, 1024), (4, 1024), (3, 7), (1, 1)):
        shards = list(encode_items(loaded, items, batch_size, shard_rows))
        names = [field.name for field in fields(EncodedItems) if field.name != "texts_cut"]
        got = {name: np.concatenate([getattr(shard, name) for shard in shards]) for name in names}
        assert got["item_ids"].tolist() == [item.item_id for item in kept]
        assert got["content_hashes"].tolist() == [item.content_hash for item in kept]
        assert [kept[row].item_id for row in np.flatnonzero(~got["image_found"])] == ["i3"]
        assert [kept[row].item_id for row in np.flatnonzero(~got["text_found"])] == ["i5"]
        for modality in ("text", "image"):
            assert got[modality].dtype == np.float32
            np.testing.assert_allclose(got[modality], expected[modality], atol=1e-5)


def test_vectors_keep_their_length_when_training_did_not_normalise(loaded: LoadedEncoder) -> None:
    items = [make_item(number) for number in range(3)]
    (unit,), (raw,) = (encode_items(replace(loaded, normalize=each), items) for each in (True, False))
    lengths = np.linalg.norm(raw.text, axis=1, keepdims=True)
    assert np.abs(lengths - 1).min() > 0.1
    np.testing.assert_allclose(raw.text / lengths, unit.text, atol=1e-6)


def test_no_items_no_shards(loaded: LoadedEncoder) -> None:
    assert list(encode_items(loaded, [])) == []
    assert list(encode_items(loaded, [make_item(7)])) == []


def test_advance_counts_every_vector_once(loaded: LoadedEncoder) -> None:
    told: list[int] = []
    items = [make_item(number) for number in range(12)]
    list(encode_items(loaded, items, batch_size=4, shard_rows=5, advance=told.append))
    assert sum(told) == 11 + 11 - 2  # eleven items have something; i3 lacks a picture, i5 a text
    assert max(told) <= 4


@given(st.lists(st.integers(1, 5000), max_size=60), st.integers(1, 40))
def test_batches_are_a_partition_within_rows_and_tokens(lengths: list[int], batch_size: int) -> None:
    batches = [rows for _, rows in _plan("text", dict(enumerate(lengths)), batch_size)]
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    for rows in batches:
        padded = len(rows) * max(lengths[row] for row in rows)
        assert len(rows) <= batch_size
        assert len(rows) == 1 or padded <= batch_size * TYPICAL_TOKENS
    in_order = [lengths[row] for rows in batches for row in rows]
    assert in_order == sorted(lengths, reverse=True)


def test_reading_stays_within_bounds(loaded: LoadedEncoder) -> None:
    """A catalogue without end: what is read by the time a shard comes out must not grow."""
    read = 0

    def endless() -> Iterator[Item]:
        nonlocal read
        while True:
            read += 1
            yield replace(make_item(read % 3), image=None)

    shards = encode_items(loaded, endless(), batch_size=4, shard_rows=8)
    for number, shard in enumerate(itertools.islice(shards, 5)):
        assert len(shard.item_ids) == 8
        most = 8 * (number + 1) + 8 * BATCHES_AHEAD + 8 + 1  # yielded, in batches, rows ahead, in progress
        assert read <= most
    shards.close()


def test_pictures_wait_scaled_down(loaded: LoadedEncoder) -> None:
    """Full-size pictures are let go as soon as they are read, or a shard of photographs fills the memory."""
    given: list[weakref.ref[Image.Image]] = []
    alive: list[int] = []

    def photographs() -> Iterator[Item]:
        for number in range(40):
            photograph = Image.new("RGB", (1000, 800))
            given.append(weakref.ref(photograph))
            yield replace(make_item(number), image=photograph)
            del photograph
            alive.append(sum(reference() is not None for reference in given))

    (shard,) = encode_items(loaded, photographs())
    assert shard.image_found.all()
    assert max(alive) <= 2


def test_an_error_of_the_catalogue_arrives_after_the_shards_before_it(loaded: LoadedEncoder) -> None:
    def failing() -> Iterator[Item]:
        yield from (make_item(number) for number in range(3))
        raise RuntimeError("row 4 cannot be read")

    done = []
    with pytest.raises(RuntimeError, match="row 4 cannot be read"):
        done.extend(shard.item_ids for shard in encode_items(loaded, failing(), shard_rows=2))
    assert done == [["i0", "i1"]]


def test_an_error_while_preparing_arrives_as_itself(loaded: LoadedEncoder) -> None:
    truncated = Image.open(io.BytesIO(png(picture(0, (600, 600)))[:500]))
    items = [make_item(0), replace(make_item(1), image=truncated)]
    with pytest.raises(OSError, match="truncated"):
        list(encode_items(loaded, items))


def test_stopping_early_gives_threads_and_catalogue_back(loaded: LoadedEncoder) -> None:
    before = set(threading.enumerate())
    closed = threading.Event()

    def endless() -> Iterator[Item]:
        try:
            for number in itertools.count():
                yield make_item(number % 3)
        finally:
            closed.set()

    def interrupt(vectors: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(encode_items(loaded, endless(), batch_size=4, shard_rows=8, advance=interrupt))
    assert closed.wait(20)
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
        assert not thread.is_alive()


def test_an_interrupt_does_not_wait_for_a_slow_catalogue(loaded: LoadedEncoder) -> None:
    release, main = threading.Event(), threading.main_thread().ident

    def stuck() -> Iterator[Item]:
        yield make_item(0)
        threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT)).start()
        release.wait()  # for ever, if the interrupt waits for this thread
        yield make_item(1)

    # A test run that was started in the background has SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(encode_items(loaded, stuck()))
    finally:
        release.set()
        signal.signal(signal.SIGINT, before)


@given(st.lists(st.integers(), max_size=20), st.integers(1, 5), st.integers(0, 20))
def test_ahead_keeps_order_and_depth(values: list[int], depth: int, stop: int) -> None:
    source = iter(values)
    with prefetch(source, depth) as ready:
        assert list(itertools.islice(ready, stop)) == values[:stop]
    left = list(source)
    assert len(values) - len(left) <= stop + depth


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_picture_has_the_length_that_was_planned(make_backbone: MakeBackbone, architecture: str) -> None:
    backbone = make_backbone(architecture)
    sizes = [(1, 1), (28, 28), (61, 250), (640, 480), (300, 2), (2, 700), (1000, 1000)]
    lengths = set()
    for size in sizes:
        image = Image.new("RGB", size)
        for prompts in (PROMPTS, PromptSettings(image_instruction="Describe it, please.", max_image_side=64)):
            length = backbone.image_length(image, prompts)
            assert length == len(backbone.image_tokens(image, prompts).token_ids), size
            lengths.add(length)
    assert len(lengths) > 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_patches_are_embedded_as_by_the_convolution(make_backbone: MakeBackbone, architecture: str) -> None:
    embed = make_backbone(architecture).model.visual.patch_embed
    convolution = embed.proj
    assert isinstance(convolution, nn.Conv3d)
    size = (convolution.in_channels, *convolution.kernel_size)
    patches = torch.randn(5, int(np.prod(size)))
    expected = convolution(patches.view(-1, *size)).flatten(1)
    torch.testing.assert_close(embed(patches), expected, rtol=1e-5, atol=1e-5)


def test_pooling_is_float32_where_autocast_is_on() -> None:
    states = torch.randn(2, 300, 4) + 100
    lengths = torch.tensor([300, 200])
    with torch.autocast("cpu", torch.bfloat16):
        pooled = mean_pool(states, lengths)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, mean_pool(states, lengths), rtol=0, atol=0)
