"""One loop that trains any recommender, keeps its best weights and measures them once on the test.

Model selection looks at the validation's `ndcg@k/full/all` only.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from sda_features import __version__
from sda_features.artifacts import atomic_folder, check_folder, write_json
from sda_features.config import EvaluationSettings, RecommenderSettings
from sda_features.devices import pick_device
from sda_features.errors import SettingsError
from sda_features.evaluation.protocols import Evaluation, evaluate
from sda_features.evaluation.run_files import (
    FORMAT,
    ITEMS,
    MANIFEST,
    RANKS,
    RUN_FILES,
    SCALING,
    USERS,
    WEIGHTS,
    file_hashes,
)
from sda_features.logs.interactions import Interactions
from sda_features.logs.splits import Split, split_interactions
from sda_features.recommenders.base import Ranker, Recommender
from sda_features.recommenders.content import WithContent, choose_weight
from sda_features.recommenders.representations import ItemVectors, prepare_vectors, save_scalings
from sda_features.recommenders.sasrec import SASRec


@dataclass(frozen=True)
class Epoch:
    """One pass over the training data.

    Attributes:
        number: from 1.
        loss: mean over steps.
        seconds: training alone, without validation.
        validation_ndcg: `ndcg@k/full/all`, or None when this epoch was not validated.
    """

    number: int
    loss: float
    seconds: float
    validation_ndcg: float | None


@dataclass(frozen=True, eq=False)
class TrainResult:
    """A trained recommender and everything that its numbers depend on.

    Attributes:
        model: with the weights of `best_epoch`, in evaluation mode.
        ranker: what was measured: the model, with the content score (content.py) where it has a weight.
        settings: of the recommender.
        evaluation: settings of the protocol.
        split: the data, split.
        item_vectors: the vectors, standardised; None when ids alone were used.
        vectors_version: version of the checkpoint that made them, if it was given.
        epochs: in order.
        best_epoch: number of the epoch whose weights were kept.
        test: ranks of the test items under both protocols.
        provenance: further entries of the manifest.
    """

    model: Recommender
    ranker: Ranker
    settings: RecommenderSettings
    evaluation: EvaluationSettings
    split: Split
    item_vectors: ItemVectors | None
    vectors_version: str | None
    epochs: list[Epoch]
    best_epoch: int
    test: Evaluation
    provenance: Mapping[str, Any]

    @property
    def vectors(self) -> dict[str, dict[str, int]]:
        """Modality -> dimension and items with a vector; empty when ids alone were used."""
        return self.item_vectors.blocks if self.item_vectors else {}

    @property
    def content_weight(self) -> float:
        """Of the content score; 0: none."""
        return self.ranker.weight if isinstance(self.ranker, WithContent) else 0.0

    def manifest(self) -> dict[str, Any]:
        """What a reader needs to judge or repeat the run, ready for JSON."""
        data = self.split.interactions
        return {
            **self.provenance,
            "sda_features": __version__,
            "torch": torch.__version__,
            "recommender": type(self.model).__name__,
            "settings": self.settings.model_dump(mode="json"),
            "evaluation": self.evaluation.model_dump(mode="json"),
            "data": {
                "sha256": data.data_hash,
                "users": data.user_count,
                "items": data.item_count,
                "interactions": len(data.items),
                "users_not_evaluated": self.split.short_users,
            },
            "vectors": self.vectors,
            "vectors_version": self.vectors_version,
            "content_weight": self.content_weight,
            "best_epoch": self.best_epoch,
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "metrics": self.test.metrics(),
        }

    def save(self, folder: Path) -> None:
        """Write a run folder, without pickle; `saved.load_run` reads it.

        manifest.json, which has the hashes of the others, model.safetensors, and
        ranks.npz: `user_ids`, `item_ids` (the targets), one bool array `group/NAME` a group and one
        float64 array `rank/PROTOCOL` a protocol, all [T], so that two runs compare user by user;
        items.parquet, one row for each item code from 1: `item_id`, `interactions` in the whole log,
        `has_vector`, and `representation`, its float32 row of the item table;
        users.safetensors: `states`, float32 [T, K], of the evaluated users at the time of the test;
        with the representations they rank again under another protocol (`rank_again`);
        scaling.safetensors, where vectors were used: for each modality the arrays of its `Scaling`.

        Raises:
            SettingsError: the folder holds something else than an earlier run.
        """
        data = self.split.interactions
        arrays: dict[str, NDArray[Any]] = {
            "user_ids": np.array(data.user_ids.take(self.test.users).to_pylist(), dtype=np.str_),
            "item_ids": np.array(data.item_ids.take(self.test.targets - 1).to_pylist(), dtype=np.str_),
        }
        arrays |= {f"rank/{name}": ranks for name, ranks in self.test.ranks.items()}
        arrays |= {f"group/{name}": members for name, members in self.test.groups.items()}
        check_folder(folder, RUN_FILES, "an earlier run")
        with atomic_folder(folder) as temporary:
            np.savez_compressed(temporary / RANKS, allow_pickle=False, **arrays)
            weights = {name: tensor.cpu().contiguous() for name, tensor in self.model.state_dict().items()}
            save_file(weights, temporary / WEIGHTS)
            pq.write_table(self._items(), temporary / ITEMS, use_dictionary=False)  # no value comes twice
            states = self.ranker.states_after(self.split.test.history, self.test.users)
            save_arrays({"states": states}, temporary / USERS)
            if self.item_vectors:
                save_scalings(self.item_vectors.scalings, temporary / SCALING)
            complete = {"format": FORMAT, **self.manifest(), "files": file_hashes(temporary)}
            write_json(temporary / MANIFEST, complete)

    def _items(self) -> pa.Table:
        data = self.split.interactions
        with torch.inference_mode():
            table = self.ranker.item_table()[1:].float().cpu().numpy()
        has_vector = self.item_vectors.found[1:] if self.item_vectors else np.zeros(len(table), bool)
        return pa.table(
            {
                "item_id": data.item_ids,
                "interactions": data.item_counts[1:],
                "has_vector": has_vector,
                "representation": pa.FixedSizeListArray.from_arrays(table.ravel(), table.shape[1]),
            }
        )


def train(
    interactions: Interactions,
    settings: RecommenderSettings,
    evaluation: EvaluationSettings,
    vectors: NDArray[Any] | Mapping[str, NDArray[Any]] | None = None,
    *,
    vectors_version: str | None = None,
    recommender: type[Recommender] = SASRec,
    provenance: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train with early stopping, then evaluate the best weights on the test items.

    Args:
        interactions: the log; it is split as `evaluation` says.
        settings: architecture, optimisation and seed.
        evaluation: the protocol.
        vectors: frozen item vectors float [I + 1, D] (see `representations.align_vectors`), or several by
            modality name, e.g. {"text": ..., "image": ...}; none: ids alone.
        vectors_version: version of the checkpoint that made them; goes into the manifest.
        recommender: which model.
        provenance: further entries of the manifest, e.g. where the vectors came from.
        progress: show a bar on standard error.

    Raises:
        InteractionsError: the log cannot be split.
        FeatureMismatchError: the vectors do not fit the items.
        SettingsError: settings that do not fit each other, or a loss that is no longer finite.
    """
    split = split_interactions(interactions, evaluation)
    if isinstance(vectors, np.ndarray):
        vectors = {"vectors": vectors}
    prepared = None
    if vectors is not None:
        prepared = prepare_vectors(vectors, interactions.item_count, whiten=settings.whiten)
    with _torch_state(settings) as device:
        model = recommender.build(split.train, settings, prepared).to(device)
        epochs, best_epoch = _fit(model, split, settings, evaluation, progress)
        ranker: Ranker = model
        if prepared and (weight := settings.content_weight):
            if weight == "auto":
                weight = choose_weight(model, prepared, split, evaluation)
            ranker = WithContent(model, prepared, weight) if weight else model
        test = evaluate(ranker.scorer(split.test.history, split.test.users), split, evaluation)
    return TrainResult(
        model=model,
        ranker=ranker,
        settings=settings,
        evaluation=evaluation,
        split=split,
        item_vectors=prepared,
        vectors_version=vectors_version,
        epochs=epochs,
        best_epoch=best_epoch,
        test=test,
        provenance=provenance or {},
    )


def _fit(
    model: Recommender,
    split: Split,
    settings: RecommenderSettings,
    evaluation: EvaluationSettings,
    progress: bool,
) -> tuple[list[Epoch], int]:
    """The loop; leaves `model` with the weights of the best validation."""
    device = model.device
    random = np.random.default_rng(settings.seed)
    optimizer = torch.optim.Adam(
        _parameter_groups(model, settings),
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
        fused=device.type in ("cpu", "cuda"),
    )
    end = 0.0 if settings.schedule == "linear" else 1.0
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, end, total_iters=settings.epochs)
    measure = f"ndcg@{evaluation.cutoff}/full/all"
    epochs: list[Epoch] = []
    best: tuple[float, int, dict[str, Tensor]] | None = None
    bar = tqdm(range(1, settings.epochs + 1), unit="epoch", disable=not progress)
    for number in bar:
        started = time.perf_counter()
        model.train()
        total, steps = torch.zeros((), device=device), 0
        for batch in model.batches(split.train, random):
            loss = model.loss({name: tensor.to(device) for name, tensor in batch.items()})
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.detach()
            steps += 1
        schedule.step()
        mean_loss = float(total) / max(steps, 1)
        seconds = time.perf_counter() - started
        if not math.isfinite(mean_loss):
            raise SettingsError(
                f"The loss is {mean_loss} in epoch {number}. Lower learning_rate ({settings.learning_rate})."
            )
        ndcg = None
        if number % settings.validate_every == 0 or number == settings.epochs:
            scorer = model.scorer(split.validation.history, split.validation.users)
            found = evaluate(scorer, split, evaluation, holdout="validation", protocols=("full",))
            ndcg = float(found.metrics()[measure] or 0.0)
            if best is None or ndcg > best[0]:
                best = (ndcg, number, {name: tensor.clone() for name, tensor in model.state_dict().items()})
        epochs.append(Epoch(number, mean_loss, seconds, ndcg))
        if best is not None:
            bar.set_postfix(loss=f"{mean_loss:.3f}", best=f"{best[0]:.4f}", at=best[1], refresh=False)
            if ndcg is not None and number - best[1] >= settings.patience * settings.validate_every:
                break
    bar.close()
    assert best is not None  # the last epoch is always validated
    model.load_state_dict(best[2])
    return epochs, best[1]


def _parameter_groups(model: Recommender, settings: RecommenderSettings) -> list[dict[str, Any]]:
    """All parameters, those that map item vectors with a learning rate of their own if there is one."""
    adapter = model.adapter_parameters() if settings.adapter_learning_rate else []
    others = [p for p in model.parameters() if all(p is not ours for ours in adapter)]
    groups: list[dict[str, Any]] = [{"params": others}]
    return [*groups, {"params": adapter, "lr": settings.adapter_learning_rate}] if adapter else groups


@contextlib.contextmanager
def _torch_state(settings: RecommenderSettings) -> Iterator[torch.device]:
    """Seed torch and set its threads for one run, and give the caller's state back afterwards."""
    device = pick_device(settings.device)
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        torch.set_num_threads(settings.threads or threads)
        try:
            yield device
        finally:
            torch.set_num_threads(threads)
