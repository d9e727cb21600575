"""Training pairs on disk: items with both modalities, read in any order without sitting in memory."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from sda_features.artifacts import atomic_file
from sda_features.catalog import Catalog, Item
from sda_features.config import PromptSettings
from sda_features.errors import CatalogError
from sda_features.images import fit_within
from sda_features.lvlm.backbone import Backbone, PromptBatch
from sda_features.prompts import text_prompt

Indices = NDArray[np.int64]
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
    """A memory-mapped Arrow file of text prompts and scaled pictures.

    Args:
        path: a file that `write_pairs` made.

    Attributes:
        sha256: hash of the pairs' contents, in order; stored with every checkpoint trained on them.
    """

    def __init__(self, path: Path):
        # Batches are taken one by one: `take` on a whole table would copy all of it into memory.
        self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        digest, self._length = hashlib.sha256(), 0
        for number in range(self._file.num_record_batches):
            rows = self._file.get_batch(number)
            digest.update("".join(rows["content_hash"].to_pylist()).encode())
            self._length += rows.num_rows
        self.sha256 = digest.hexdigest()

    def __len__(self) -> int:
        return self._length

    def _row(self, index: int) -> dict[str, Any]:
        number, row = divmod(index, ROWS_A_BATCH)
        found: dict[str, Any] = self._file.get_batch(number).slice(row, 1).to_pylist()[0]
        return found

    def micro_batches(
        self, indices: Indices, backbone: Backbone, prompts: PromptSettings, micro: int
    ) -> Iterator[PromptBatch]:
        """Tokenised micro batches of the items at `indices`, all text ones, then all image ones.

        Each is made when it is asked for: the patches of a large batch would fill gigabytes.
        """
        chunks = np.split(indices, range(micro, len(indices), micro))
        for chunk in chunks:
            texts = [self._row(index)["prompt"] for index in chunk.tolist()]
            prompted = [backbone.text_tokens(text, prompts.max_text_tokens) for text in texts]
            yield backbone.collate(prompted, "text")
        for chunk in chunks:
            pictures = [Image.open(io.BytesIO(self._row(index)["picture"])) for index in chunk.tolist()]
            yield backbone.collate([backbone.image_tokens(shown, prompts) for shown in pictures], "image")


def write_pairs(catalog: Catalog, prompts: PromptSettings, path: Path, progress: bool) -> None:
    """Read the catalogue once and write the items that have both a text and a picture to `path`.

    Raises:
        CatalogError: fewer than two items have both.
    """
    count = 0
    shrink = partial(fit_within, longest_side=prompts.max_image_side)
    items = tqdm(
        catalog.items(shrink=shrink), "reading catalogue", catalog.rows, unit="item", disable=not progress
    )
    with atomic_file(path) as temporary, pa.ipc.new_file(str(temporary), SCHEMA) as writer:
        pairs = (pair for item in items if (pair := _pair(item, prompts)))
        while rows := list(islice(pairs, ROWS_A_BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
            count += len(rows)
    if count < 2:
        raise CatalogError(
            f"{catalog.settings.path} has {count} items with both a text and a picture; training "
            f"contrasts items with each other and needs at least 2. {catalog.report}"
        )


def _pair(item: Item, prompts: PromptSettings) -> dict[str, Any] | None:
    prompt = text_prompt(item.fields, prompts)
    if prompt is None or item.image is None:
        return None
    picture = io.BytesIO()
    item.image.save(picture, "PNG", compress_level=1)
    return {
        "item_id": item.item_id,
        "prompt": prompt,
        "picture": picture.getvalue(),
        "content_hash": item.content_hash,
    }


def hold_out(items: int, share: float, seed: int) -> tuple[Indices, Indices]:
    """Split item positions into (training, validation); at most 1,000 are held out.

    Fewer than 20 items cannot rank a top 10, so such a validation set is left empty.
    """
    order = np.random.default_rng((seed, items)).permutation(items)
    held = min(int(share * items), 1000)
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


@lru_cache(maxsize=2)
def _epoch_order(items: int, seed: int, epoch: int) -> Indices:
    return np.random.default_rng((seed, epoch)).permutation(items)
