"""What every recommender offers, so that one training loop and one evaluation serve all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sda_features.config import RecommenderSettings
from sda_features.evaluation.protocols import Scorer
from sda_features.logs.interactions import Interactions
from sda_features.recommenders.representations import ItemEncoder, ItemVectors

Batch = dict[str, Tensor]
# Interactions read, and users, whose states are computed together: on a CPU more activations leave the cache.
READ_AT_ONCE, USERS_AT_ONCE = 6400, 4096


class Ranker(nn.Module, ABC):
    """A score that is a dot product: score[u, i] = user_state(u) . item_table[i].

    That one form holds for self-attention (state of the last position), factorisation (a bias is
    one more column) and graph models alike, makes scoring one matrix product, and lets a vector
    index serve the model. Item code 0 is padding: its row of the table is ignored by every reader.
    """

    def __init__(self, settings: RecommenderSettings) -> None:
        super().__init__()
        self.settings = settings

    @abstractmethod
    def user_states(self, users: Tensor, histories: Tensor) -> Tensor:
        """Left factor of the score.

        Args:
            users: int64 [B] user indices.
            histories: int64 [B, L] item codes in time order, left-padded with 0.

        Returns:
            float32 [B, K].
        """

    @abstractmethod
    def item_table(self) -> Tensor:
        """Right factor of the score, float32 [I + 1, K]."""

    def score(self, users: Tensor, histories: Tensor) -> Tensor:
        """Scores of the whole catalogue, float32 [B, I + 1]; arguments as for `user_states`."""
        return self.user_states(users, histories) @ self.item_table().T

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(self.parameters()).device

    def scorer(self, history: Interactions, users: NDArray[np.int64] | None = None) -> Scorer:
        """A function for `evaluate`: the model as it is now, without dropout, given `history`.

        Args:
            history: what is known of the users.
            users: int64 [T], whom it will be asked for; none: everybody.
        """
        users = np.arange(history.user_count) if users is None else users
        self.eval()
        with torch.inference_mode():
            table = self.item_table().T.contiguous()  # the product reads it once a batch, along the items
            known = self._states(history, users)
            states = known.new_zeros(history.user_count, known.shape[1])
            states[torch.from_numpy(users).to(self.device)] = known

        def score(users: NDArray[np.int64]) -> NDArray[np.float32]:
            with torch.inference_mode():
                wanted = states[torch.from_numpy(users).to(states.device)]
                scores: NDArray[np.float32] = (wanted @ table).float().cpu().numpy()
            return scores

        return score

    def states_after(
        self, history: Interactions, users: NDArray[np.int64], *, batch: int | None = None
    ) -> NDArray[np.float32]:
        """`user_states` [T, K] of `users` [T] given `history`, without dropout, `batch` users at a time."""
        self.eval()
        with torch.inference_mode():
            states: NDArray[np.float32] = self._states(history, users, batch).float().cpu().numpy()
        return states

    def _states(self, history: Interactions, users: NDArray[np.int64], batch: int | None = None) -> Tensor:
        if batch is None:
            read = np.minimum(history.lengths[users], self.settings.max_length).sum()
            fitting = int(np.clip(READ_AT_ONCE * len(users) // max(1, read), 1, USERS_AT_ONCE))
            batch = fitting if self.device.type == "cpu" else USERS_AT_ONCE
        states = []
        for start in range(0, max(len(users), 1), batch):
            some = users[start : start + batch]
            histories = torch.from_numpy(history.recent(some, self.settings.max_length)).long()
            states.append(self.user_states(torch.from_numpy(some).to(self.device), histories.to(self.device)))
        return torch.cat(states)


class Recommender(Ranker):
    """A ranker that is trained.

    Subclasses are final, make all their parameters in `__init__` and implement the abstract methods;
    tests/contracts/recommender.py holds what they promise. A random choice made in Python draws from
    the generator that is handed in, one made by torch from torch's global generator; the training loop
    seeds both.
    """

    @classmethod
    @abstractmethod
    def build(cls, train: Interactions, settings: RecommenderSettings, vectors: ItemVectors | None) -> Self:
        """A fresh model; `train` gives the counts of users and items, and a graph to those that need one."""

    @abstractmethod
    def batches(self, train: Interactions, random: np.random.Generator) -> Iterator[Batch]:
        """One shuffled pass over the training data, as CPU tensors that `loss` understands."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Mean training loss of a batch, a differentiable scalar."""

    def adapter_parameters(self) -> list[nn.Parameter]:
        """What maps item vectors into the model, and has a learning rate of its own; none by default."""
        return []


class SequenceRecommender(Recommender):
    """A recommender whose user is a sequence of item representations, and whose table is `items.table()`.

    It knows no user and needs no id, so it ranks items and users that came after its training, as
    long as the items have vectors. Its `build` reads counts of `train` and nothing else, so a saved
    run loads without its log (saved.py).
    """

    items: ItemEncoder

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The adapter of `items`."""
        return self.items.adapter_parameters()

    def item_table(self) -> Tensor:
        """Item representations, float32 [I + 1, K]."""
        return self.items.table()

    @abstractmethod
    def state_after(self, representations: Tensor) -> Tensor:
        """User state after a history.

        Args:
            representations: float32 [L, K], rows as `items` makes them, the latest last; longer
                than `max_length`: its end counts.

        Returns:
            float32 [K]; zero without any history.
        """
