"""Training pairs on disk: items with both modalities, read in any order without sitting in memory."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from sda_features.artifacts import atomic_file
from sda_features.catalog import Catalog
from sda_features.config import PromptSettings
from sda_features.errors import CatalogError
from sda_features.images import fit_within
from sda_features.lvlm.backbone import Backbone, PromptBatch
from sda_features.prompts import text_prompt

Indices = NDArray[np.int64]
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
        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        hashes = "".join(self._table["content_hash"].to_pylist())
        self.sha256 = hashlib.sha256(hashes.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._table)

    def batch(
        self, indices: Indices, backbone: Backbone, prompts: PromptSettings, micro: int
    ) -> list[PromptBatch]:
        """Tokenised micro batches of the items at `indices`: all text ones, then all image ones."""
        rows = self._table.take(pa.array(indices)).to_pylist()
        text = [backbone.text_tokens(row["prompt"]) for row in rows]
        image = [backbone.image_tokens(Image.open(io.BytesIO(row["picture"])), prompts) for row in rows]
        return [
            backbone.collate(sequence[start : start + micro], modality)
            for modality, sequence in (("text", text), ("image", image))
            for start in range(0, len(rows), micro)
        ]


def write_pairs(catalog: Catalog, prompts: PromptSettings, path: Path, progress: bool) -> None:
    """Read the catalogue once and write the items that have both a text and a picture to `path`.

    Raises:
        CatalogError: fewer than two items have both.
    """
    count = 0
    with atomic_file(path) as temporary, pa.ipc.new_file(str(temporary), SCHEMA) as writer:
        items = tqdm(catalog.items(), "reading catalogue", catalog.rows, unit="item", disable=not progress)
        for item in items:
            prompt = text_prompt(item.fields, prompts)
            if prompt is None or item.image is None:
                continue
            picture = io.BytesIO()
            fit_within(item.image, prompts.max_image_side).save(picture, "PNG", compress_level=1)
            columns = [[item.item_id], [prompt], [picture.getvalue()], [item.content_hash]]
            writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
            count += 1
    if count < 2:
        raise CatalogError(
            f"{catalog.settings.path} has {count} items with both a text and a picture; training "
            f"contrasts items with each other and needs at least 2. {catalog.report}"
        )


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
    order = np.random.default_rng((seed, epoch)).permutation(items)
    return order[position * batch_size : (position + 1) * batch_size]


def prefetch_batches(
    pairs: TrainingPairs,
    backbone: Backbone,
    prompts: PromptSettings,
    batches: Sequence[Indices],
    micro: int,
) -> Iterator[list[PromptBatch]]:
    """Yield the micro batches of each of `batches`; the next ones are prepared in a thread meanwhile."""
    with ThreadPoolExecutor(1) as worker:
        ahead = [worker.submit(pairs.batch, indices, backbone, prompts, micro) for indices in batches[:1]]
        for following in range(1, len(batches) + 1):
            ready = ahead.pop().result()
            if following < len(batches):
                ahead.append(worker.submit(pairs.batch, batches[following], backbone, prompts, micro))
            yield ready
