"""Real Feast repos, applied, on the shared server; rows to put into them."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from sda_features.feature_store.init import FILE_NAME, init_repo
from sda_features.feature_store.repo import quiet_feast
from sda_features.offline.parts import write_part
from sda_features.offline.schema import vectors_table

FEAST = Path(sys.executable).with_name("feast")
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


def apply(repo: Path) -> None:
    """`feast apply` in this process: register what `sda-features init` wrote into a repo."""
    with quiet_feast():
        from feast import Entity, FeatureStore, FeatureView

        definitions = runpy.run_path(str(repo / FILE_NAME)).values()
        objects = [value for value in definitions if isinstance(value, Entity | FeatureView)]
        FeatureStore(repo_path=str(repo)).apply(objects)


def applied_repo(repo: Path, config: str, **options) -> Path:
    """A Feast repo with what `sda-features init` writes, applied."""
    repo.mkdir(exist_ok=True)
    (repo / "feature_store.yaml").write_text(config)
    init_repo(repo, **options)
    apply(repo)
    return repo


@pytest.fixture(scope="session")
def new_repo(redis_server, new_project) -> Callable[..., Path]:
    """Make a folder an `applied_repo` on the shared server."""
    return lambda repo, **options: applied_repo(repo, config(new_project(), redis_server), **options)


def run_feast(*arguments: str, cwd: Path) -> str:
    """Run the stock `feast` command; return what it printed."""
    run = subprocess.run([FEAST, *arguments], cwd=cwd, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def config(project: str, server: tuple[str, int] | None, store: str = "redis") -> str:
    """A feature_store.yaml; without a server the online store is SQLite."""
    redis = "{{type: {}, connection_string: '{}:{}'}}"
    online = redis.format(store, *server) if server else "{path: data/online.db}"
    return f"project: {project}\nprovider: local\nregistry: data/registry.db\nonline_store: {online}\n"


@dataclass(frozen=True)
class Rows:
    """n items and the vectors they were given, float32 [n, d]."""

    ids: list[str]
    text: np.ndarray
    text_found: np.ndarray
    image: np.ndarray
    image_found: np.ndarray

    @classmethod
    def random(cls, ids: list[str], dim: int = 5, *, seed: int = 0) -> Rows:
        """Vectors of all sizes of number, and a null in each modality from the second item on."""
        rng = np.random.default_rng(seed)
        text, image = (
            rng.normal(size=(2, len(ids), dim)) * 10.0 ** rng.integers(-42, 30, (2, len(ids), dim))
        ).astype(np.float32)
        text[0, 0] = -0.0
        rows = np.arange(len(ids))
        text_found, image_found = rows % 5 != 1, rows % 4 != 1
        text[~text_found] = image[~image_found] = 0
        return cls(ids, text, text_found, image, image_found)

    def write(
        self, folder: Path, *, version: str = "v1", time: datetime = NOON, id_type: str = "string"
    ) -> str:
        """Write the rows as one part; return its name."""
        table = vectors_table(
            self.ids,
            text=self.text,
            text_found=self.text_found,
            image=self.image,
            image_found=self.image_found,
            adapter_version=version,
            content_hashes=[f"hash of {item_id}" for item_id in self.ids],
            event_timestamp=time,
        )
        return write_part(folder, table, id_type=id_type)

    def assert_equal(self, vectors) -> None:
        """Bit for bit, masks included."""
        assert vectors.text.tobytes() == self.text.tobytes()
        assert vectors.image.tobytes() == self.image.tobytes()
        assert vectors.text_found.tolist() == self.text_found.tolist()
        assert vectors.image_found.tolist() == self.image_found.tolist()


@pytest.fixture
def make_repo(tmp_path, redis_server, new_project) -> Callable[..., Path]:
    """Make a repo with views of the feature set `sda`, one a slot, applied in this process."""

    def make(
        *,
        server: tuple[str, int] | None = redis_server,
        name: str = "repo",
        entity: bool = True,
        slots: int = 1,
        project: str | None = None,
    ) -> Path:
        from feast import FeatureStore

        from sda_features.feature_store.definitions import embedding_source, embedding_view, item_entity

        repo = tmp_path / name
        repo.mkdir()
        (repo / "feature_store.yaml").write_text(config(project or new_project(), server))
        item = item_entity()
        folders = {slot: "data/sda" + (f"_{slot}" if slot > 1 else "") for slot in range(1, slots + 1)}
        sources = {slot: embedding_source("sda", path, item, slot=slot) for slot, path in folders.items()}
        views = [embedding_view("sda", source, item, slot=slot) for slot, source in sources.items()]
        with quiet_feast():
            objects = [*sources.values(), *views, *([item] if entity else [])]
            FeatureStore(repo_path=str(repo)).apply(objects)
        return repo

    return make


@pytest.fixture
def later() -> Callable[[int], datetime]:
    """Event timestamps: so many hours after the usual one."""
    return lambda hours: NOON + timedelta(hours=hours)
