"""Vectors of the feature store to a trained recommender."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pyarrow import Array

from sda_features.config import EvaluationSettings, RecommenderSettings
from sda_features.errors import FeatureMismatchError

if TYPE_CHECKING:
    from sda_features.recommenders.train import TrainResult

IDS_ALONE = "id"  # the feature set of a recommender that reads no vectors


def train_recommender(
    interactions: Path,
    features: str,
    settings: RecommenderSettings,
    evaluation: EvaluationSettings,
    *,
    repo: Path | None = None,
    user_column: str = "user_id",
    item_column: str = "item_id",
    time_column: str | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train SASRec on a log, with item vectors from Feast's offline store, and evaluate it.

    Args:
        interactions: parquet, CSV or JSONL log.
        features: "id" for id embeddings alone, else a feature set of `repo`.
        settings: of the recommender.
        evaluation: of the protocol.
        repo: an applied Feast repo; not needed for "id".
        user_column, item_column, time_column: columns of the log, see `read_interactions`.
        progress: show a bar on standard error.

    Raises:
        InteractionsError, FeatureStoreError: see the message.
        FeatureMismatchError: no item of the log has a vector, or vectors of several versions are mixed.
    """
    from sda_features.interactions import read_interactions
    from sda_features.recommenders.train import train

    log = read_interactions(
        interactions, user_column=user_column, item_column=item_column, time_column=time_column
    )
    vectors, version = None, None
    if features != IDS_ALONE:
        vectors, version = stored_vectors(repo or Path(), features, log.item_ids)
    return train(log, settings, evaluation, vectors, vectors_version=version, progress=progress)


def stored_vectors(
    repo: Path, feature_set: str, item_ids: Array, version: str | None = None
) -> tuple[dict[str, np.ndarray], str | None]:
    """What trainers read: vectors of I items, and their adapter version.

    Args:
        repo: an applied Feast repo.
        feature_set: name of the feature set.
        item_ids: Arrow strings [I]; item i has code i + 1.
        version: adapter version; None: the live one.

    Returns:
        Modality -> float32 [I + 1, d]; zero in row 0 (padding) and for missing vectors. And the version.

    Raises:
        FeatureMismatchError, FeatureStoreError: see `train_recommender`.
    """
    from sda_features.feature_store.offline import load_vectors
    from sda_features.recommenders.features import align_vectors

    found = load_vectors(repo, feature_set, item_ids.to_pylist(), version=version)
    if len(found.versions) > 1:
        raise FeatureMismatchError(
            f"The vectors of feature set {feature_set!r} come from {len(found.versions)} adapter versions "
            f"({', '.join(found.versions)}) and do not lie in one space; materialize the whole catalogue again."
        )
    if not (found.text_found.any() or found.image_found.any()):
        raise FeatureMismatchError(
            f"None of the {len(item_ids)} items of the log, such as {item_ids[0].as_py()!r}, has a vector in "
            f"feature set {feature_set!r}. Do the ids of log and catalogue agree?"
        )
    blocks = {"text": (found.text, found.text_found), "image": (found.image, found.image_found)}
    vectors = {
        name: align_vectors(item_ids, found.item_ids, matrix)
        for name, (matrix, mask) in blocks.items()
        if mask.any()
    }
    return vectors, next(iter(found.versions), None)
