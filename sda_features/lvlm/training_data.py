"""Training items on disk: those that the steps of a run can use, read in any order without sitting in memory."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import csr_array
from tqdm import tqdm

from sda_features.artifacts import atomic_file
from sda_features.catalog.images import fit_within
from sda_features.catalog.prompts import text_prompt
from sda_features.catalog.rows import Catalog, Item
from sda_features.config import PromptSettings
from sda_features.errors import CatalogError
from sda_features.lvlm.backbone import Backbone, PromptBatch

Indices = NDArray[np.int64]
MOST_HELD_OUT = 1000
ROWS_A_BATCH = 256  # of the Arrow file; all batches but the last are full
SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("prompt", pa.string()),
        ("picture", pa.binary()),
        ("content_hash", pa.string()),
    ]
)


class TrainingPairs:
    """A memory-mapped Arrow file of text prompts and scaled pictures, as `write_pairs` makes it.

    Positions count the items that have both first, then those with a text alone, then those with a
    picture alone, each in catalogue order.

    Attributes:
        texts, images: positions of the items with a text alone, and with a picture alone.
        item_ids: ids of all, by position (Arrow strings).
        cut: positions whose text was longer than the model reads, of those that were asked for.
        sha256: hash of the items' contents, in order; stored with every checkpoint trained on them.
    """

    def __init__(self, path: Path):
        # Rows are taken one by one: `take` on the whole table would copy all of it into memory.
        self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        table = self._file.read_all()
        digest = hashlib.sha256()
        for hashes in table["content_hash"].chunks:
            digest.update("".join(hashes.to_pylist()).encode())
        self.sha256 = digest.hexdigest()
        no_text, no_image = (table[name].is_null().to_numpy() for name in ("prompt", "picture"))
        kinds = no_image + 2 * no_text
        self._rows = np.argsort(kinds, kind="stable")  # in the file, by position
        self._length = int((kinds == 0).sum())
        self.texts, self.images = np.split(np.arange(self._length, len(kinds)), [(kinds == 1).sum()])
        self.item_ids = table["item_id"].take(self._rows)
        self.cut: set[int] = set()

    def __len__(self) -> int:
        """The number of items that have both."""
        return self._length

    def _row(self, index: int) -> dict[str, Any]:
        number, row = divmod(int(self._rows[index]), ROWS_A_BATCH)
        found: dict[str, Any] = self._file.get_batch(number).slice(row, 1).to_pylist()[0]
        return found

    def micro_batches(
        self,
        texts: Indices,
        backbone: Backbone,
        prompts: PromptSettings,
        micro: int,
        images: Indices | None = None,
    ) -> Iterator[PromptBatch]:
        """Tokenised micro batches: all text ones, of the items at `texts`, then all image ones.

        Each is made when it is asked for: the patches of a large batch would fill gigabytes.
        Pictures are those of the items at `images`; None: at `texts`.
        """
        images = texts if images is None else images
        for start in range(0, len(texts), micro):
            chunk = texts[start : start + micro].tolist()
            rows = [self._row(index)["prompt"] for index in chunk]
            prompted = [backbone.text_tokens(text, prompts.max_text_tokens) for text in rows]
            self.cut.update(at for at, prompt in zip(chunk, prompted, strict=True) if prompt.cut)
            yield backbone.collate(prompted, "text")
        for start in range(0, len(images), micro):
            chunk = images[start : start + micro].tolist()
            pictures = [Image.open(io.BytesIO(self._row(index)["picture"])) for index in chunk]
            yield backbone.collate([backbone.image_tokens(shown, prompts) for shown in pictures], "image")


def write_pairs(
    catalog: Catalog,
    prompts: PromptSettings,
    path: Path,
    progress: bool,
    most: int | None = None,
    seed: int = 0,
    singles: bool = False,
) -> None:
    """Read the catalogue once and write the items that can be trained on to `path`.

    Pictures are scaled to the size the model sees and kept as JPEG, some 20 KB at 256 pixels: the
    file has at most `most` of them, whatever the size of the catalogue.

    Args:
        most: rows to look at, drawn at random; None: all. Others are not in `catalog.report`.
        seed: of that choice.
        singles: whether to keep items that have a text or a picture alone.

    Raises:
        CatalogError: fewer than two items have both.
    """
    rows = None
    if most is not None and most < catalog.rows:
        rows = np.sort(np.random.default_rng((seed, most)).choice(catalog.rows, most, replace=False)) + 1
    total = catalog.rows if rows is None else len(rows)
    count = 0
    shrink = partial(fit_within, longest_side=prompts.max_image_side)
    items = tqdm(
        catalog.items(shrink=shrink, rows=rows),
        "reading catalogue",
        total,
        unit="item",
        disable=not progress,
    )
    with atomic_file(path) as temporary, pa.ipc.new_file(str(temporary), SCHEMA) as writer:
        kept = (row for item in items if (row := _row(item, prompts, singles)))
        while batch := list(islice(kept, ROWS_A_BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=SCHEMA))
            count += sum(row["prompt"] is not None and row["picture"] is not None for row in batch)
    if count < 2:
        raise CatalogError(
            f"{catalog.settings.path} has {count} items with both a text and a picture; training "
            f"contrasts items with each other and needs at least 2. {catalog.report}"
        )


def _row(item: Item, prompts: PromptSettings, singles: bool) -> dict[str, Any] | None:
    prompt = text_prompt(item.fields, prompts)
    present = (prompt is not None) + (item.image is not None)
    if present < (1 if singles else 2):
        return None
    picture = None
    if item.image is not None:
        stream = io.BytesIO()
        item.image.save(stream, "JPEG", quality=95, subsampling=0)
        picture = stream.getvalue()
    return {
        "item_id": item.item_id,
        "prompt": prompt,
        "picture": picture,
        "content_hash": item.content_hash,
    }


def hold_out(items: int, share: float, seed: int) -> tuple[Indices, Indices]:
    """Split item positions into (training, validation); at most 1,000 are held out.

    Fewer than 20 items cannot rank a top 10, so such a validation set is left empty.
    """
    order = np.random.default_rng((seed, items)).permutation(items)
    held = min(int(share * items), MOST_HELD_OUT)
    held = held if held >= 20 else 0
    return np.sort(order[held:]), np.sort(order[:held])


def step_indices(items: int, batch_size: int, seed: int, step: int) -> Indices:
    """The items of one step: a pure function of its arguments, so that a resumed run sees the same data.

    Each epoch is a fresh permutation cut into whole batches; the items left over sit out that epoch.

    Returns:
        [min(batch_size, items)] int64, all different.
    """
    batch_size = min(batch_size, items)
    epoch, position = divmod(step, items // batch_size)
    return _epoch_order(items, seed, epoch)[position * batch_size : (position + 1) * batch_size]


@dataclass(frozen=True, eq=False)
class StepItems:
    """Positions of a step's items: int64 `pairs` [N], and those of a text or a picture alone."""

    pairs: Indices
    texts: Indices
    images: Indices

    @property
    def with_text(self) -> Indices:
        """Those whose text is encoded, [N + n_t]."""
        return np.concatenate([self.pairs, self.texts])

    @property
    def with_image(self) -> Indices:
        """Those whose picture is encoded, [N + n_v]."""
        return np.concatenate([self.pairs, self.images])

    def map(self, take: Callable[[Indices], Indices]) -> StepItems:
        """The same with `take` on each."""
        return StepItems(take(self.pairs), take(self.texts), take(self.images))


class Sampler:
    """Draws the items of each step: a pure function of seed and step, so that a resumed run sees the same data.

    Args:
        training: positions of the items with both modalities.
        texts, images: positions of those with one; they come along in their proportion, at most N a step.
        batch_size: N.
        multiple: that all counts are to be divisible by, the number of processes.
        partners: bool [n, n], items taken together; half of a step's pairs then bring a partner along.
    """

    def __init__(
        self,
        training: Indices,
        texts: Indices,
        images: Indices,
        batch_size: int,
        seed: int,
        multiple: int = 1,
        partners: csr_array | None = None,
    ):
        self.batch_size = min(batch_size, len(training) // multiple * multiple)
        self._training = training
        self._partners = partners
        self._seed = seed
        self._singles: list[tuple[Indices, int]] = []
        for alone in (texts, images):
            count = min(len(alone) * self.batch_size // len(training), self.batch_size)
            self._singles.append((alone, count // multiple * multiple))

    def step(self, step: int) -> StepItems:
        """The items of one step."""
        pairs = self._training[step_indices(len(self._training), self.batch_size, self._seed, step)]
        if self._partners is not None:
            pairs = self._with_partners(pairs, step)
        texts, images = (
            alone[step_indices(len(alone), count, self._seed, step)] if count else alone[:0]
            for alone, count in self._singles
        )
        return StepItems(pairs, texts, images)

    def _with_partners(self, drawn: Indices, step: int) -> Indices:
        """The first half of `drawn`, a random partner of each that has one, and of the rest what fits."""
        assert self._partners is not None
        rng = np.random.default_rng((self._seed, 1, step))
        anchors = drawn[: len(drawn) // 2]
        starts, ends = self._partners.indptr[anchors], self._partners.indptr[anchors + 1]
        chosen = (starts + rng.random(len(anchors)) * (ends - starts)).astype(np.int64)[ends > starts]
        together = np.concatenate([anchors, self._partners.indices[chosen], drawn[len(anchors) :]])
        _, first = np.unique(together, return_index=True)
        return together[np.sort(first)][: len(drawn)]


@lru_cache(maxsize=4)
def _epoch_order(items: int, seed: int, epoch: int) -> Indices:
    return np.random.default_rng((seed, epoch)).permutation(items)
