"""What is known of the items before training: how the base model relates them, and who took them together.

The paper's argument is that relations inside a modality are right from the start. They are right
before training, not during it; so the base model's vectors are made once, centred over the
catalogue, and stay as they are while the adapter learns.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from sda_features.config import MODALITIES, LossSettings, PromptSettings
from sda_features.lvlm.cmsa import BaseRelations, normalized_entropy, others, teacher_logits
from sda_features.lvlm.encoder import PromptEncoder
from sda_features.lvlm.processes import Processes
from sda_features.lvlm.training_data import Indices, StepItems, TrainingPairs

SAMPLED_BATCHES, LARGEST_BATCH = 16, 1024  # on which temperatures are solved
BLOCK_ROWS = 4096  # read at a time
HALVINGS = 40  # of the interval that holds a temperature
TEXT, IMAGE = map(MODALITIES.index, ("text", "image"))


class BaseVectors:
    """Vectors of training items by the base model, unit length, centred over the items, on disk.

    `write_base_vectors` made the file, float16 [2, n, d]; a missing modality is zero.
    """

    def __init__(self, path: Path):
        self._vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        self._means = [_mean_of_found(rows) for rows in self._vectors]

    def __len__(self) -> int:
        """n."""
        return int(self._vectors.shape[1])

    def rows(self, modality: int, positions: Indices) -> Tensor:
        """Float32 [n, d] of `TEXT` or `IMAGE`."""
        vectors = self._vectors[modality, positions].astype(np.float32) - self._means[modality]
        return F.normalize(torch.from_numpy(vectors), dim=1)


def write_base_vectors(
    path: Path,
    encoder: PromptEncoder,
    pairs: TrainingPairs,
    prompts: PromptSettings,
    micro: int,
    processes: Processes,
) -> None:
    """Encode all training items with the base model; every process must call it and does its share.

    `path` gets float16 [2, n, d]; float16 keeps a unit vector's cosines to some 1e-3.
    """
    building = path.with_suffix(".part")
    shape = (2, len(pairs.item_ids), encoder.backbone.hidden_size)
    if processes.is_main:
        np.lib.format.open_memmap(building, "w+", np.float16, shape).flush()
    processes.wait()
    vectors = np.lib.format.open_memmap(building, "r+")
    texts = np.concatenate([np.arange(len(pairs)), pairs.texts])
    images = np.concatenate([np.arange(len(pairs)), pairs.images])
    left = [np.array_split(positions, processes.count)[processes.rank] for positions in (texts, images)]
    with encoder.without_dropout():
        for batch in pairs.micro_batches(left[TEXT], encoder.backbone, prompts, micro, left[IMAGE]):
            modality = MODALITIES.index(batch.modality)
            made = F.normalize(encoder.unadapted(batch), dim=1).half().cpu().numpy()
            positions, left[modality] = np.split(left[modality], [len(made)])
            vectors[modality, positions] = made
    vectors.flush()
    processes.wait()
    if processes.is_main:
        os.replace(building, path)
    processes.wait()


class Relations:
    """What the loss is told of each batch.

    Args:
        base: vectors of the base model, None unless the loss needs them.
        partners: bool [n, n] by position, None without a log.
        training: positions that temperatures are solved on.
        batch_size: N; what an entropy means depends on it.
        device: where the loss is computed.
    """

    def __init__(
        self,
        settings: LossSettings,
        base: BaseVectors | None,
        partners: csr_array | None,
        training: Indices,
        batch_size: int,
        device: torch.device,
    ):
        self._base = base
        self._partners = partners
        self._device = device
        self.teacher_temperature = settings.teacher_temperature or settings.temperature
        self.structure_temperatures = 1.0, 1.0
        if base is None:
            return
        size = min(batch_size, LARGEST_BATCH, len(training))
        rng = np.random.default_rng(0)
        samples = [rng.choice(training, size, replace=False) for _ in range(SAMPLED_BATCHES)]
        text, image = ([base.rows(modality, sample) for sample in samples] for modality in (TEXT, IMAGE))
        if settings.teacher == "fixed" and settings.teacher_temperature is None:
            weight = settings.teacher_text_weight
            logits = [teacher_logits(*both, 1.0, weight) for both in zip(text, image, strict=True)]
            self.teacher_temperature = solve_temperature(logits, settings.teacher_entropy)
        if settings.structure_weight:
            of_text, of_image = (
                solve_temperature([others(rows @ rows.T) for rows in vectors], settings.structure_entropy)
                for vectors in (text, image)
            )
            self.structure_temperatures = of_text, of_image

    def known(self, items: StepItems) -> BaseRelations:
        """What the loss is told of a step's items, those of all processes."""
        text = image = partners = None
        if self._base is not None:
            text = self._base.rows(TEXT, items.with_text).to(self._device)
            image = self._base.rows(IMAGE, items.with_image).to(self._device)
        if self._partners is not None:
            partners = torch.from_numpy(self._partners[items.pairs][:, items.pairs].toarray())
            partners = partners.to(self._device)
        return BaseRelations(
            len(items.pairs),
            text,
            image,
            self.teacher_temperature,
            self.structure_temperatures,
            partners,
        )


def solve_temperature(similarities: Sequence[Tensor], entropy: float) -> float:
    """The temperature at which the softmax of rows has this mean entropy, as a share of log n between 0 and 1.

    Matrices [n, n'] of numbers between -1 and 1 -> a number between 1e-4 and 1e2; entropy grows with it.
    """
    low, high = 1e-4, 1e2
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        found = [normalized_entropy(torch.softmax(rows / middle, dim=1)) for rows in similarities]
        low, high = (middle, high) if sum(found) / len(found) < entropy else (low, middle)
    return float(middle)


def _mean_of_found(vectors: NDArray[np.float16]) -> NDArray[np.float32]:
    """Mean of the rows that are not zero, block by block: the file may be larger than memory."""
    total, count = np.zeros(vectors.shape[1]), 0
    for start in range(0, len(vectors), BLOCK_ROWS):
        block = vectors[start : start + BLOCK_ROWS].astype(np.float64)
        total += block.sum(axis=0)
        count += int(block.any(axis=1).sum())
    return (total / max(count, 1)).astype(np.float32)
