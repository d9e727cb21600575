"""A feature_store.yaml that was written before the classes had a folder of their own works as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sda_features.feast_plugins.engine import VectorEngine
from sda_features.feast_plugins.offline_store import VectorFileOfflineStore
from sda_features.feast_plugins.online_store import VectorRedisOnlineStore
from sda_features.feature_store.repo import open_feature_set
from sda_features.serving.repo_config import read_repo_config
from tests.feast_repo import applied_repo, config


@pytest.mark.parametrize(
    ("folder", "online"), [("feature_store", "online"), ("feast_plugins", "online_store")]
)
def test_every_path_leads_to_the_class(
    tmp_path: Path, redis_server: tuple[str, int], new_project: Callable[[], str], folder: str, online: str
) -> None:
    settings = (
        config(new_project(), redis_server, f"sda_features.{folder}.{online}.VectorRedisOnlineStore")
        + f"offline_store: {{type: sda_features.{folder}.offline_store.VectorFileOfflineStore}}\n"
        + f"batch_engine: {{type: sda_features.{folder}.engine.VectorEngine}}\n"
    )
    applied_repo(tmp_path, settings, feature_sets=["sda"], slots=1)
    store, found = open_feature_set(tmp_path, "sda").store, read_repo_config(tmp_path)
    provider = store._get_provider()
    assert type(provider.online_store) is VectorRedisOnlineStore
    assert type(provider.offline_store) is VectorFileOfflineStore
    assert type(provider.batch_engine) is VectorEngine
    assert found.has_redis
    assert found.engine_type == "sda_features.feast_plugins.engine.VectorEngine"
    assert found.offline_type == "sda_features.feast_plugins.offline_store.VectorFileOfflineStore"
