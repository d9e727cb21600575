"""Training pairs on disk: items with both modalities, read in any order without sitting in memory."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from tqdm import tqdm

from sda_features.artifacts import atomic_file
from sda_features.catalog import Catalog
from sda_features.config import PromptSettings
from sda_features.errors import CatalogError
from sda_features.images import fit_within
from sda_features.lvlm.backbone import Backbone, PromptBatch
from sda_features.prompts import text_prompt

SCHEMA = pa.schema([("item_id", pa.string()), ("prompt", pa.string()), ("picture", pa.binary())])


class TrainingPairs:
    """A memory-mapped Arrow file of text prompts and scaled pictures.

    Attributes:
        sha256: hash of the pairs' contents, in order; stored with every checkpoint trained on them.
    """

    def __init__(self, path: Path, sha256: str):
        self.sha256 = sha256
        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()

    def __len__(self) -> int:
        return len(self._table)

    @classmethod
    def collect(cls, catalog: Catalog, prompts: PromptSettings, path: Path, progress: bool) -> TrainingPairs:
        """Read the catalogue once; write the pairs it holds to `path`.

        Raises:
            CatalogError: fewer than two items have both a text and a picture.
        """
        digest, count = hashlib.sha256(), 0
        with atomic_file(path) as temporary, pa.ipc.new_file(str(temporary), SCHEMA) as writer:
            items = tqdm(
                catalog.items(), "reading catalogue", catalog.rows, unit="item", disable=not progress
            )
            for item in items:
                prompt = text_prompt(item.fields, prompts)
                if prompt is None or item.image is None:
                    continue
                picture = io.BytesIO()
                fit_within(item.image, prompts.max_image_side).save(picture, "PNG", compress_level=1)
                columns = [[item.item_id], [prompt], [picture.getvalue()]]
                writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
                digest.update(item.content_hash.encode())
                count += 1
        if count < 2:
            raise CatalogError(
                f"{catalog.settings.path} has {count} items with both a text and a picture; training "
                f"contrasts items with each other and needs at least 2. {catalog.report}"
            )
        return cls(path, digest.hexdigest())

    def batch(
        self, indices: np.ndarray, backbone: Backbone, prompts: PromptSettings, micro: int
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


def step_indices(items: int, batch_size: int, seed: int, step: int) -> np.ndarray:
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
    steps: range,
    batch_size: int,
    micro: int,
    seed: int,
) -> Iterator[list[PromptBatch]]:
    """Yield the micro batches of each step; the next step's are prepared in a thread meanwhile."""

    def prepare(step: int) -> list[PromptBatch]:
        return pairs.batch(step_indices(len(pairs), batch_size, seed, step), backbone, prompts, micro)

    with ThreadPoolExecutor(1) as worker:
        ahead = worker.submit(prepare, steps[0]) if len(steps) else None
        for following in [*steps[1:], None]:
            assert ahead is not None
            ready = ahead.result()
            if following is not None:
                ahead = worker.submit(prepare, following)
            yield ready
