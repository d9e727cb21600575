"""A saved run under another protocol, without its model: every score is a product of two saved factors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import load_file

from sda_features.config import EvaluationSettings
from sda_features.errors import CheckpointError, SettingsError
from sda_features.evaluation.protocols import Evaluation, evaluate
from sda_features.evaluation.run_files import ITEMS, USERS, read_manifest, run_content
from sda_features.logs.interactions import Interactions
from sda_features.logs.splits import split_interactions

# What was trained on; the rest is how it is ranked.
SPLIT = ("split", "cold_share", "validation_from", "test_from")


def item_factors(items: pa.Table) -> NDArray[np.float32]:
    """The item representations in a run's `items.parquet`, float32 [I + 1, K]; row 0 is zero."""
    column = items["representation"].combine_chunks()
    rows = column.flatten().to_numpy().reshape(len(column), -1)
    return np.concatenate([np.zeros((1, rows.shape[1]), np.float32), rows])


def rank_again(
    folder: Path, log: Interactions, settings: EvaluationSettings, *, content_weight: float | None = None
) -> Evaluation:
    """Rank the test items of a run as `settings` say: cut-off, negatives, their seed, limit of the tail.

    score[u, i] = state_u . r_i, both as the run folder holds them, so any recommender ranks again
    in the time of one matrix product.

    Args:
        folder: the run folder.
        log: the log that the run was trained on.
        settings: the new protocol; its split is that of the run.
        content_weight: another weight of the content score, 0 for the recommender alone; None: the run's.

    Raises:
        CheckpointError: not a run folder, or damaged.
        SettingsError: another log, another split, or a run without a content score.
        RankingError: see `evaluate`.
    """
    manifest = read_manifest(folder)
    if manifest["data"]["sha256"] != log.data_hash:
        raise SettingsError(
            f"{folder} was trained on another log (hash {manifest['data']['sha256'][:12]}, this one has "
            f"{log.data_hash[:12]}). Give the same log, columns and k-core."
        )
    with run_content(folder, manifest, [USERS, ITEMS]):
        trained = EvaluationSettings.parse(**manifest["evaluation"])
        states = load_file(folder / USERS)["states"]
        table = item_factors(pq.read_table(folder / ITEMS, columns=["representation"]))
    if any(getattr(trained, name) != getattr(settings, name) for name in SPLIT):
        raise SettingsError(
            f"{folder} was trained on the split {trained.split}; another one needs another training."
        )
    split = split_interactions(log, settings)
    if states.shape != (len(split.test.users), table.shape[1]) or len(table) != log.item_count + 1:
        raise CheckpointError(
            f"{folder}: states {list(states.shape)} and items {list(table[1:].shape)} do not fit the log. Train again."
        )
    if content_weight is not None:
        if not manifest.get("content_weight"):
            raise SettingsError(f"{folder} has no content score; train with --content-weight first.")
        width = sum(block["dim"] for block in manifest["vectors"].values())
        states[:, -width:] *= content_weight / manifest["content_weight"]
    rows = np.full(log.user_count, -1)
    rows[split.test.users] = np.arange(len(states))

    def score(users: NDArray[np.int64]) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = states[rows[users]] @ table.T
        return scores

    return evaluate(score, split, settings)
