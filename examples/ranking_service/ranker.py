"""History and candidates in, ranking out: one read of vectors, one score, and what happens without Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sda_features.errors import FeatureMismatchError, OnlineStoreError
from sda_features.recommenders.saved import LoadedRecommender
from sda_features.serving import Embeddings

from .breaker import CircuitBreaker
from .metrics import Metrics

Basis: TypeAlias = Literal["vectors", "run", "popularity"]
Reason: TypeAlias = Literal["redis_unavailable", "redis_paused", "wrong_vectors", "missing_vectors"]
Vectors: TypeAlias = dict[str, NDArray[np.float32]]  # modality -> [n, d]
PROBES, CHECK_DEADLINE = 32, 1.0  # items that `check` looks up; its patience in seconds


class VectorReader(Protocol):
    """What is used of `AsyncEmbeddingClient`."""

    async def get(self, item_ids: Sequence[str], *, deadline: float) -> Embeddings:
        """Vectors in the order of the request, or an error within `deadline` seconds."""

    async def close(self) -> None:
        """Close the connections."""


@dataclass(frozen=True)
class Ranking:
    """The best k candidates.

    Attributes:
        item_ids: best first.
        scores: one for each.
        unknown: candidates that neither the run nor the store knows; they are not ranked.
        basis: what scores are made of: `vectors` that were read for this request, representations
            of the `run`, or `popularity` (interactions in the log) when no history item is known.
        reason: why the ranking is degraded; None if it is not.
    """

    item_ids: list[str]
    scores: list[float]
    unknown: list[str]
    basis: Basis
    reason: Reason | None


class Ranker:
    """Ranks with a loaded run.

    Args:
        run: the recommender.
        reader: of the vectors it was trained on.
        breaker: turns requests away from a Redis that keeps failing.
        metrics: what happens is counted there.
        deadline: longest wait for vectors, in seconds.
        concurrency: requests in work at a time. Scoring blocks the event loop, so without this
            limit a busy moment would look like a slow Redis.
    """

    def __init__(
        self,
        run: LoadedRecommender,
        reader: VectorReader,
        breaker: CircuitBreaker,
        metrics: Metrics,
        *,
        deadline: float,
        concurrency: int,
    ) -> None:
        self.run, self.reader, self.breaker, self.metrics = run, reader, breaker, metrics
        self.deadline = deadline
        self._turn = asyncio.Semaphore(concurrency)

    async def rank(self, history: Sequence[str], candidates: Sequence[str], k: int) -> Ranking:
        """Rank candidates for somebody who took the items of `history`, the latest last."""
        with self.metrics.request_seconds.time():
            async with self._turn:
                vectors, reason = await self._read([*history, *candidates])
                ranking = self._order(history, candidates, k, vectors, reason)
        self.metrics.answers.labels(ranking.basis).inc()
        if ranking.reason:
            self.metrics.degraded.labels(ranking.reason).inc()
        return ranking

    async def check(self) -> str | None:
        """What keeps the service from full answers; None if nothing does."""
        if not self.run.scalings:
            return None
        popular = np.argsort(-self.run.interactions * self.run.has_vector, kind="stable")[:PROBES]
        ids = [self.run.item_ids[code - 1] for code in popular.tolist() if code]
        try:
            found = await self.reader.get(ids, deadline=CHECK_DEADLINE)
            scored = self.run.score([], ids, self._vectors(found))
        except (OnlineStoreError, FeatureMismatchError) as error:
            return str(error)
        if scored.stale > len(ids) // 2:
            return f"The store has vectors of {scored.fresh} of the {len(ids)} most popular items."
        return None

    async def _read(self, ids: list[str]) -> tuple[Vectors | None, Reason | None]:
        """The vectors, or why there are none."""
        if not self.run.scalings:
            return None, None
        if not self.breaker.allow():
            return None, "redis_paused"
        vectors: Vectors | None = None
        reason: Reason | None = None
        with self.metrics.lookup_seconds.time():
            try:
                vectors = self._vectors(await self.reader.get(ids, deadline=self.deadline))
            except OnlineStoreError:
                reason = "redis_unavailable"
            except FeatureMismatchError:
                reason = "wrong_vectors"
        if reason == "redis_unavailable":
            self.breaker.failure()
        else:
            self.breaker.success()
        self.metrics.breaker_open.set(self.breaker.is_open)
        if reason:
            self.metrics.read_errors.labels(reason).inc()
        return vectors, reason

    def _order(
        self,
        history: Sequence[str],
        candidates: Sequence[str],
        k: int,
        vectors: Vectors | None,
        reason: Reason | None,
    ) -> Ranking:
        try:
            scored = self.run.score(history, candidates, vectors)
        except FeatureMismatchError:  # numbers that are not finite
            vectors, reason = None, "wrong_vectors"
            scored = self.run.score(history, candidates)
        if vectors is not None:
            self.metrics.items_asked.inc(len(history) + len(candidates))
            self.metrics.items_found.inc(scored.fresh)
            if scored.stale:
                reason = "missing_vectors"
        basis: Basis = "vectors" if scored.fresh else "run"
        scores = scored.scores
        if not scored.usable_history:
            basis, scores = "popularity", self.run.interactions[self.run.codes(candidates)].astype(np.float32)
        ranked = np.flatnonzero(scored.known)
        best = ranked[np.argsort(-scores[ranked], kind="stable")[:k]]
        return Ranking(
            item_ids=[candidates[row] for row in best.tolist()],
            scores=scores[best].tolist(),
            unknown=[candidates[row] for row in np.flatnonzero(~scored.known).tolist()],
            basis=basis,
            reason=reason,
        )

    def _vectors(self, found: Embeddings) -> Vectors:
        return {name: getattr(found, name) for name in self.run.scalings}
