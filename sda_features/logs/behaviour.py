"""Which items customers take together: a second teacher, from the part of a log that may be learned from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from sda_features.config import BehaviourSettings, EvaluationSettings
from sda_features.logs.interactions import Interactions, next_positions, read_interactions, session_positions
from sda_features.logs.splits import split_interactions

SESSION_WINDOW = 5  # most interactions between two items of a session that are paired


@dataclass(frozen=True, eq=False)
class Behaviour:
    """Pairs of items that one customer took in one session or one after the other.

    Attributes:
        item_ids: vocabulary, Arrow strings [I]; code i > 0 is `item_ids[i - 1]`.
        pairs: int [m, 2] item codes, each pair once.
        identity: what a manifest records: the log's hash, the split, the hash of its training part.
    """

    item_ids: Any
    pairs: NDArray[np.int64]
    identity: dict[str, Any]

    def partners(self, item_ids: Any, *groups: NDArray[np.int64]) -> list[csr_array]:
        """Bool [n, n] over `item_ids` (Arrow strings [n]), symmetric, among the positions of each group alone."""
        n = len(item_ids)
        found = pc.index_in(self.item_ids, pa.chunked_array([item_ids.combine_chunks()]))
        positions = found.fill_null(n).to_numpy(zero_copy_only=False)[self.pairs - 1]
        partners = []
        for group in groups:
            usable = np.zeros(n + 1, np.bool_)
            usable[group] = True
            left, right = positions[usable[positions].all(axis=1)].T
            places = np.concatenate([left, right]), np.concatenate([right, left])
            together = coo_array((np.ones(len(places[0]), np.bool_), places), shape=(n, n)).tocsr()
            together.sum_duplicates()
            partners.append(together)
        return partners


def read_behaviour(settings: BehaviourSettings) -> Behaviour | None:
    """Read and split a log; None without one.

    What an evaluation with the same split holds out, of users or of dates, is in no pair.

    Raises:
        InteractionsError: the log cannot be read or split.
    """
    if settings.interactions is None:
        return None
    columns = settings.model_dump(include={"user_column", "item_column", "time_column"})
    log = read_interactions(settings.interactions, **columns)
    split = settings.model_dump(include={"split", "validation_from", "test_from"})
    train = split_interactions(log, EvaluationSettings.parse(**split)).train
    identity = {
        "path": str(settings.interactions),
        "sha256": log.data_hash,
        "split": split,
        "training_sha256": train.data_hash,
    }
    return Behaviour(log.item_ids, taken_together(train), identity)


def taken_together(log: Interactions) -> NDArray[np.int64]:
    """Pairs of different items of one user, one after the other or in one session: int64 [m, 2], each once."""
    places = np.concatenate([next_positions(log), session_positions(log, SESSION_WINDOW)])
    both = log.items[places].astype(np.int64)
    return np.unique(np.sort(both[both[:, 0] != both[:, 1]], axis=1), axis=0)
