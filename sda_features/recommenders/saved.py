"""A trained run, loaded to rank items: no log, no training, vectors come with each call or not at all.

score(history, i) = state_after(r(history)) . r(i), where r(i) is the representation of item i: made
from its vector if the call brings one, else the one that was saved with the run. So an item that
came after the training is ranked by its vector, and without any vectors the run ranks as it did
when it was saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from sda_features.artifacts import sha256_files
from sda_features.config import RecommenderSettings
from sda_features.errors import CheckpointError
from sda_features.evaluation.metrics import Floats
from sda_features.evaluation.run_files import ITEMS, SCALING, WEIGHTS, read_manifest, run_content
from sda_features.logs.interactions import Interactions
from sda_features.recommenders.base import SequenceRecommender
from sda_features.recommenders.content import content_state, content_units
from sda_features.recommenders.rank_again import item_factors
from sda_features.recommenders.registry import find_class
from sda_features.recommenders.representations import (
    ItemVectors,
    Scaling,
    join_modalities,
    load_scalings,
)


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of n candidates.

    Attributes:
        scores: float32 [n]; meaningless where not `known`.
        known: bool [n]; False for an item that was not in training and has no vector.
        usable_history: items of the history that are known, at most the model's `max_length`; when
            it is 0, all scores are 0.
        fresh: items of history and candidates that came with a vector.
        stale: those that had one in training and came without.
    """

    scores: NDArray[np.float32]
    known: NDArray[np.bool_]
    usable_history: int
    fresh: int
    stale: int


@dataclass(frozen=True, eq=False)
class LoadedRecommender:
    """A run, ready to rank on the CPU. Safe to share between threads.

    Attributes:
        model: in evaluation mode; its own item table is empty, use `table`.
        item_ids: ids of codes 1..I, in order.
        interactions: int64 [I + 1], how often the log has each item; entry 0 is 0.
        has_vector: bool [I + 1], which items had a vector in training.
        table: float32 [I + 1, K], the item representations that were saved; row 0 is zero. With a content
            weight their last columns are the unit vectors of `content`.
        scalings: modality -> how its vectors are standardised; empty for a run on ids alone.
        content_weight: of the content score, see content.py.
        version: hash of weights, items and scaling, 12 hex digits.
        vectors_version: version of the checkpoint whose vectors the run was trained on, if known.
    """

    model: SequenceRecommender
    item_ids: tuple[str, ...]
    interactions: NDArray[np.int64]
    has_vector: NDArray[np.bool_]
    table: Tensor
    scalings: Mapping[str, Scaling]
    content_weight: float
    version: str
    vectors_version: str | None

    def score(
        self,
        history: Sequence[str],
        candidates: Sequence[str],
        vectors: Mapping[str, Floats] | None = None,
    ) -> Scores:
        """Scores of candidates for somebody who took the items of `history`.

        Args:
            history: item ids in time order, the latest last; items that are not known are skipped.
            candidates: n item ids.
            vectors: modality -> float [len(history) + n, d], rows of the history and then of the
                candidates, zero where there is none; the names and dimensions of the training.
                None: the representations saved with the run.

        Raises:
            FeatureMismatchError: the vectors are not those of the training in names, shape or finiteness.
        """
        ids = [*history, *candidates]
        codes = self.codes(ids)
        rows = self.table[torch.from_numpy(codes)]
        found = np.zeros(len(ids), np.bool_)
        if vectors is not None and self.scalings:
            values, found = join_modalities(vectors, self.scalings)
            rows = self._represent(codes, values, found, rows)
        known = found | (codes > 0)
        past, split = known[: len(history)], len(history)
        with torch.inference_mode():
            recent = rows[:split][torch.from_numpy(past)][-self.model.settings.max_length :]
            scores = (rows[split:] @ self._state(recent)).numpy()
        stale = self.has_vector[codes] & ~found
        return Scores(scores, known[split:], len(recent), fresh=int(found.sum()), stale=int(stale.sum()))

    def codes(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Item codes, int64 [n]; 0 for an item that was not in training."""
        known = self._codes
        return np.fromiter((known.get(item_id, 0) for item_id in ids), np.int64, len(ids))

    def _represent(
        self, codes: NDArray[np.int64], values: NDArray[np.float32], found: NDArray[np.bool_], saved: Tensor
    ) -> Tensor:
        """Representations [n, K] from vectors where found, else `saved`."""
        there = torch.from_numpy(found)[:, None]
        with torch.inference_mode():
            fresh = self.model.items.represent(
                torch.from_numpy(codes), torch.from_numpy(values), there.float(), self._adapter
            )
            if self.content_weight:
                fresh = torch.cat([fresh, content_units(torch.from_numpy(values), self._widths)], dim=1)
            return torch.where(there, fresh, saved)

    def _state(self, recent: Tensor) -> Tensor:
        """User state [K] after items whose representations are [L, K]."""
        if not self.content_weight:
            return self.model.state_after(recent)
        width = sum(self._widths)
        own, units = torch.split(recent, [recent.shape[1] - width, width], dim=1)
        return torch.cat([self.model.state_after(own), self.content_weight * content_state(units)])

    @property
    def _widths(self) -> list[int]:
        return [len(scaling.mean) for scaling in self.scalings.values()]

    @cached_property
    def _codes(self) -> dict[str, int]:
        return {item_id: code for code, item_id in enumerate(self.item_ids, start=1)}

    @cached_property
    def _adapter(self) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            return self.model.items.folded_adapter()


def load_run(folder: Path, recommender: type[SequenceRecommender] | None = None) -> LoadedRecommender:
    """Load what `TrainResult.save` wrote.

    Args:
        folder: the run folder.
        recommender: its class; needed only where no package names it as an entry point (registry.py).

    Raises:
        CheckpointError: not a run folder, damaged, or its recommender cannot rank by histories.
        SettingsError: the package of its recommender cannot be loaded.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    name = manifest.get("recommender")
    cls = recommender or find_class(str(name))
    if cls is None or cls.__name__ != name or not issubclass(cls, SequenceRecommender):
        expected = recommender.__name__ if recommender else "SASRec, BERT4Rec or one of an installed package"
        raise CheckpointError(
            f"{folder} holds a {name}; expected a recommender that ranks by a history of items: {expected}."
        )
    modalities = list(manifest.get("vectors", {}))
    files = [WEIGHTS, ITEMS, *([SCALING] if modalities else [])]
    with run_content(folder, manifest, files):
        items = pq.read_table(folder / ITEMS)
        if len(items) != manifest["data"]["items"]:
            raise ValueError(f"{ITEMS} has {len(items)} rows for {manifest['data']['items']} items")
        settings = RecommenderSettings.parse(**manifest["settings"])
        scalings = load_scalings(folder / SCALING, modalities) if modalities else {}
        width = sum(len(scaling.mean) for scaling in scalings.values())
        vectors = ItemVectors(np.zeros((0, width), np.float32), np.zeros(0, bool), {}, scalings)
        log = _empty_log(items["item_id"], manifest["data"]["users"])
        with torch.random.fork_rng(devices=[]):
            model = cls.build(log, settings, vectors if scalings else None)
        model.load_state_dict(load_file(folder / WEIGHTS))
        return LoadedRecommender(
            model=model.eval().requires_grad_(False),
            item_ids=tuple(items["item_id"].to_pylist()),
            interactions=np.concatenate([[0], items["interactions"].to_numpy()]),
            has_vector=np.concatenate([[False], items["has_vector"].to_numpy()]),
            table=torch.from_numpy(item_factors(items)),
            scalings=scalings,
            content_weight=float(manifest.get("content_weight", 0.0)),
            version=sha256_files([folder / file for file in files])[:12],
            vectors_version=manifest.get("vectors_version"),
        )


def _empty_log(item_ids: Any, users: int) -> Interactions:
    """A log with the run's counts of users and items, and nothing else."""
    nobody = pa.array([""] * users)
    return Interactions(nobody, item_ids, np.zeros(users + 1, np.int64), np.zeros(0, np.int32))
