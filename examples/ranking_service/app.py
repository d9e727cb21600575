"""The HTTP side: POST /rank, GET /health, /ready and /metrics.

uvicorn --factory examples.ranking_service.app:create_app
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import AsyncIterator
from typing import Annotated

import torch
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field

from sda_features.errors import FeatureMismatchError, SettingsError
from sda_features.recommenders.saved import LoadedRecommender, load_run
from sda_features.serving import AsyncEmbeddingClient
from sda_features.serving.layout import parse_item_id

from .breaker import CircuitBreaker
from .metrics import Metrics
from .ranker import Basis, Ranker, Reason, VectorReader
from .settings import ServiceSettings

logger = logging.getLogger("uvicorn.error")
ItemId = Annotated[str, Field(min_length=1, max_length=512)]
MODALITIES = ("text", "image")


class RankRequest(BaseModel):
    """Body of POST /rank."""

    model_config = ConfigDict(extra="forbid")

    history: list[ItemId] = Field(
        description="Items of the user in time order, the latest last; may be empty."
    )
    candidates: list[ItemId] = Field(min_length=1, description="Items to rank, each once.")
    k: int = Field(10, ge=1, description="How many of them to return.")


class RankedItem(BaseModel):
    """A candidate and its score."""

    item_id: str
    score: float


class RankResponse(BaseModel):
    """Answer of POST /rank; see `Ranking` for `basis`, `reason` and `unknown`."""

    items: list[RankedItem]
    unknown: list[str]
    basis: Basis
    degraded: bool
    reason: Reason | None
    run_version: str
    vectors_version: str | None


def create_app(settings: ServiceSettings | None = None, reader: VectorReader | None = None) -> FastAPI:
    """The service.

    Args:
        settings: none: from the environment.
        reader: of vectors; none: the online store of the repo.

    Raises:
        SettingsError, CheckpointError, FeatureStoreError, OnlineStoreError: the service is set up
            wrongly. A Redis that is away is no such error.
    """
    settings = settings or ServiceSettings.from_environment()
    run = _load(settings)
    metrics = Metrics()
    metrics.model.info(
        {
            "run_version": run.version,
            "vectors_version": run.vectors_version or "",
            "feature_set": settings.feature_set,
        }
    )
    ranker = Ranker(
        run,
        reader or _reader(settings, run),
        CircuitBreaker(settings.breaker_failures, settings.breaker_pause_s),
        metrics,
        deadline=settings.deadline_ms / 1000,
        concurrency=settings.concurrency,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        torch.set_num_threads(1)  # one process a core
        problem = await ranker.check()  # and the first request finds everything warm
        if problem:
            logger.warning("Answers are degraded: %s", problem)
        # What lives now lives on: a full collection that scans it would stop a request for 0.1 s and more.
        gc.collect()
        gc.freeze()
        yield
        await ranker.reader.close()

    app = FastAPI(title="Ranking service", lifespan=lifespan)

    @app.post("/rank")
    async def rank(request: RankRequest) -> RankResponse:
        _check(request, settings)
        ranking = await ranker.rank(request.history, request.candidates, request.k)
        return RankResponse(
            items=[
                RankedItem(item_id=item_id, score=score)
                for item_id, score in zip(ranking.item_ids, ranking.scores, strict=True)
            ],
            unknown=ranking.unknown,
            basis=ranking.basis,
            degraded=ranking.reason is not None,
            reason=ranking.reason,
            run_version=run.version,
            vectors_version=run.vectors_version,
        )

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready")
    async def ready(response: Response) -> dict[str, str | None]:
        problem = await ranker.check()
        response.status_code = 503 if problem else 200
        return {"status": "degraded" if problem else "ready", "problem": problem}

    @app.get("/metrics")
    async def scrape() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(RequestValidationError)
    async def refuse(_: Request, error: RequestValidationError) -> JSONResponse:
        # Without the input: it may be long, and text that is no UTF-8 cannot be sent back.
        faults = [{"loc": fault["loc"], "msg": fault["msg"]} for fault in error.errors()]
        return JSONResponse({"detail": faults}, status_code=422)

    return app


def _load(settings: ServiceSettings) -> LoadedRecommender:
    run = load_run(settings.run)
    others = [name for name in run.scalings if name not in MODALITIES]
    if others:
        raise SettingsError(
            f"{settings.run} was trained on vectors named {', '.join(others)}; the store has "
            f"{' and '.join(MODALITIES)}. Train with `sda-features train --features {settings.feature_set}`."
        )
    return run


def _reader(settings: ServiceSettings, run: LoadedRecommender) -> VectorReader:
    dims = {len(scaling.mean) for scaling in run.scalings.values()}
    return AsyncEmbeddingClient.from_repo(
        settings.repo,
        settings.feature_set,
        join_key=settings.join_key,
        id_type=settings.id_type,
        dim=dims.pop() if dims else None,
        version=run.vectors_version,
    )


def _check(request: RankRequest, settings: ServiceSettings) -> None:
    """Raise HTTPException 422 for what the request's types do not hold."""
    faults = []
    for name, most in (("candidates", settings.max_candidates), ("history", settings.max_history)):
        if len(getattr(request, name)) > most:
            faults.append(f"Expected at most {most} {name}, got {len(getattr(request, name))}.")
    if len(set(request.candidates)) != len(request.candidates):
        faults.append("Expected each candidate once.")
    if settings.id_type != "string":
        try:
            for item_id in (*request.history, *request.candidates):
                parse_item_id(item_id, settings.id_type)
        except FeatureMismatchError as error:
            faults.append(str(error))
    if faults:
        raise HTTPException(422, [{"loc": ["body"], "msg": fault} for fault in faults])
