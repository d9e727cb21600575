"""Smaller numbers from init to every reader: the same rounding everywhere, and never two kinds in one folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sda_features.errors import FeatureMismatchError
from sda_features.feature_store.matrices import load_vectors
from sda_features.feature_store.repo import open_feature_set, quiet_feast
from sda_features.feature_store.to_online import materialize_view
from sda_features.serving import EmbeddingClient
from tests.feast_repo import Rows, applied_repo, config

ITEMS, DIM = 50, 24
IDS = [f"item {row}" for row in range(ITEMS)]
FOUND = np.arange(ITEMS) % 7 != 3
VECTORS = np.random.default_rng(0).normal(size=(ITEMS, DIM)).astype(np.float32) * FOUND[:, None]
ROWS = Rows(IDS, VECTORS, FOUND, VECTORS[::-1].copy(), FOUND[::-1].copy())


@pytest.fixture(scope="module")
def repo(
    tmp_path_factory: pytest.TempPathFactory, redis_server: tuple[str, int], new_project: Callable[[], str]
) -> Path:
    store = "sda_features.feast_plugins.online_store.VectorRedisOnlineStore"
    settings = {"feature_sets": ["plain", "half:float16", "byte:int8"], "slots": 1}
    repo = applied_repo(
        tmp_path_factory.mktemp("dtypes"), config(new_project(), redis_server, store), **settings
    )
    for feature_set in ("plain", "half", "byte"):
        opened = open_feature_set(repo, feature_set)
        ROWS.write(opened.folder, store_dtype=opened.store_dtype)
        materialize_view(repo, feature_set)
    return repo


@pytest.mark.parametrize(("feature_set", "atol"), [("plain", 0), ("half", 2e-3), ("byte", 2e-2)])
def test_every_reader_gets_the_same_numbers(repo: Path, feature_set: str, atol: float) -> None:
    with EmbeddingClient.from_repo(repo, feature_set, dim=DIM) as client:
        online = client.get(IDS)
    np.testing.assert_allclose(online.text, VECTORS, atol=atol)
    np.testing.assert_array_equal(online.text_found, FOUND)
    offline = load_vectors(repo, feature_set, IDS)
    assert offline.text.tobytes() == online.text.tobytes()
    assert offline.image.tobytes() == online.image.tobytes()
    opened = open_feature_set(repo, feature_set)
    with quiet_feast():
        response = opened.store.get_online_features(
            [f"{opened.view.name}:text_embedding"], [{"item_id": item_id} for item_id in IDS]
        )
        matrix, found = response.to_matrix("text_embedding")
        stored = response.to_dict()["text_embedding"]
    np.testing.assert_array_equal(found, FOUND)
    assert matrix.tobytes() == online.text.tobytes()
    sizes = {"plain": DIM, "half": 8 + 2 * DIM, "byte": 12 + DIM}
    assert {len(value) for value, there in zip(stored, FOUND, strict=True) if there} == {sizes[feature_set]}


def test_a_folder_stores_vectors_in_one_way(repo: Path) -> None:
    for feature_set, other in (("plain", "float16"), ("half", "int8"), ("byte", "float32")):
        opened = open_feature_set(repo, feature_set)
        with pytest.raises(FeatureMismatchError, match=f"store vectors as {opened.store_dtype}, got {other}"):
            ROWS.write(opened.folder, store_dtype=other)
