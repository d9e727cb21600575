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
import pyarrow as pa
import pytest

from sda_features.feature_store.init import FILE_NAME, init_repo
from sda_features.feature_store.repo import quiet_feast
from sda_features.feature_store.to_online import materialize_view
from sda_features.feature_store.versions import open_versions, record_version, slot_for
from sda_features.offline.parts import write_part
from sda_features.offline.schema import vectors_table
from sda_features.serving import EmbeddingClient

FEAST = Path(sys.executable).with_name("feast")
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


def apply(repo: Path, file: str = FILE_NAME, *, with_entity: bool = True) -> None:
    """`feast apply` in this process: register what `sda-features init` wrote into a repo."""
    with quiet_feast():
        from feast import Entity, FeatureStore, FeatureView

        kinds = (FeatureView, Entity) if with_entity else FeatureView
        definitions = runpy.run_path(str(repo / file)).values()
        FeatureStore(repo_path=str(repo)).apply([value for value in definitions if isinstance(value, kinds)])


def applied_repo(repo: Path, config: str, *, with_entity: bool = True, **options) -> Path:
    """A Feast repo with what `sda-features init` writes, applied; without its entity, as some forget it."""
    repo.mkdir(exist_ok=True)
    (repo / "feature_store.yaml").write_text(config)
    init_repo(repo, **options)
    apply(repo, with_entity=with_entity)
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

    def table(self, version: str = "v1", time: datetime = NOON, store_dtype: str = "float32") -> pa.Table:
        """The rows of the offline store."""
        return vectors_table(
            self.ids,
            text=self.text,
            text_found=self.text_found,
            image=self.image,
            image_found=self.image_found,
            adapter_version=version,
            content_hashes=[f"hash of {item_id}" for item_id in self.ids],
            event_timestamp=time,
            store_dtype=store_dtype,
        )

    def write(self, folder: Path, *, id_type: str = "string", **options) -> str:
        """Write the rows as one part; return its name."""
        return write_part(folder, self.table(**options), id_type=id_type)

    def store(self, repo: Path, version: str, *, promote: bool = False, time: datetime = NOON) -> int:
        """Write the rows as a version, as `materialize` does; return its slot."""
        with open_versions(repo, "sda") as versions, slot_for(versions.slots, versions, version) as opened:
            self.write(opened.folder, version=version, time=time)
            materialize_view(repo, "sda", slot=opened.slot)
            record_version(versions, opened, version, promote=promote)
            return opened.slot

    def assert_equal(self, vectors) -> None:
        """Bit for bit, masks included."""
        assert vectors.text.tobytes() == self.text.tobytes()
        assert vectors.image.tobytes() == self.image.tobytes()
        assert vectors.text_found.tolist() == self.text_found.tolist()
        assert vectors.image_found.tolist() == self.image_found.tolist()

    def assert_served(self, repo: Path) -> None:
        """As `assert_equal`, of what a client reads."""
        with EmbeddingClient.from_repo(repo, "sda") as client:
            self.assert_equal(client.get(self.ids))


@pytest.fixture
def make_repo(tmp_path, redis_server, new_project) -> Callable[..., Path]:
    """Make an `applied_repo` with views of the feature set `sda`, one a slot, and rows in the first."""

    def make(
        *,
        server: tuple[str, int] | None = redis_server,
        name: str = "repo",
        slots: int = 1,
        project: str | None = None,
        rows: Rows | None = None,
        **options,
    ) -> Path:
        options |= {"feature_sets": ["sda"], "slots": slots, "source_folder": "data"}
        repo = applied_repo(tmp_path / name, config(project or new_project(), server), **options)
        if rows:
            rows.write(repo / "data/sda")
        return repo

    return make


@pytest.fixture
def later() -> Callable[[int], datetime]:
    """Event timestamps: so many hours after the usual one."""
    return lambda hours: NOON + timedelta(hours=hours)
