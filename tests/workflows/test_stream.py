"""`stream`: upserts and deletions reach both stores, are acknowledged afterwards, and are written twice unharmed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from sda_features.config import BackboneSettings, CatalogSettings, PromptSettings
from sda_features.demo.catalogue import make_catalogue
from sda_features.demo.model import build_tiny_model
from sda_features.errors import FeatureStoreError
from sda_features.feature_store.init import init_repo
from sda_features.feature_store.matrices import load_vectors
from sda_features.lvlm.checkpoint import unadapted
from sda_features.serving import EmbeddingClient
from sda_features.workflows import materialize
from sda_features.workflows import stream as module
from sda_features.workflows.stream import RedisStream, stream
from tests.feast_repo import apply, redis_config


def test_events_reach_both_stores(
    tmp_path: Path,
    redis_server: tuple[str, int],
    new_project: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project = new_project()
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "feature_store.yaml").write_text(redis_config(project, redis_server))
    init_repo(repo, feature_sets=["sda"])
    apply(repo)
    make_catalogue(10).write(tmp_path / "items.parquet")
    build_tiny_model(tmp_path / "model", ["title is oak"], hidden_size=64, layers=1, vision_layers=1)
    backbone = BackboneSettings.parse(model=str(tmp_path / "model"), quantization="none", device="cpu")
    load = lambda: unadapted(backbone, PromptSettings())  # noqa: E731
    items = CatalogSettings.parse(path=tmp_path / "items.parquet", max_bad_rows=1.0)
    rows = CatalogSettings.parse(path="events.jsonl")

    with redis.Redis(*redis_server) as server:
        source = RedisStream(server, project)

        def add(item: object, **fields: str) -> None:
            server.xadd(project, {"item": json.dumps(item), **fields})

        add({"item_id": "new", "title": "a red oak table"})
        with pytest.raises(FeatureStoreError, match="not complete. Write the catalogue"):
            next(stream(repo, "sda", rows, load, source))
        materialize(repo, "sda", items, load, progress=False)
        add({"item_id": "gone", "title": "a lamp"})
        add({"item_id": "gone"}, op="delete")
        add("no item")

        def crash(*arguments: object) -> None:
            raise ConnectionError

        with monkeypatch.context() as patch:  # the rows are offline, and not online
            patch.setattr("sda_features.feature_store.online_rows.write_online", crash)
            with pytest.raises(ConnectionError):
                next(stream(repo, "sda", rows, load, RedisStream(server, project)))
        assert server.xpending(project, "sda-features")["pending"] > 0
        batches = stream(repo, "sda", rows, load, RedisStream(server, project), seconds=0.1)
        done = next(batches)
        while (last := next(batches)) != module.Streamed(0, 0, 0):
            done = module.Streamed(
                *(a + b for a, b in zip(vars(done).values(), vars(last).values(), strict=True))
            )
        assert (done.written, done.deleted) == (1, 1)
        assert server.xpending(project, "sda-features")["pending"] == 0
    with EmbeddingClient.from_repo(repo, "sda") as client:
        served = client.get(["new", "gone"])
    trained = load_vectors(repo, "sda", ["new", "gone"])
    assert served.text_found.tolist() == trained.text_found.tolist() == [True, False]
    assert served.text[0].tobytes() == trained.text[0].tobytes()
    assert materialize(repo, "sda", items, load, max_removed=1.0, progress=False).removed == 1
