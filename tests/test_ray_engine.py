"""`materialize --engine ray` on a real cluster of one machine, held against the local engine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pa_dataset
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from pyarrow.fs import FileSelector
from torch import Tensor

from sda_features.catalog.rows import Catalog
from sda_features.cli.failures import explain
from sda_features.cli.main import cli
from sda_features.config import BackboneSettings, CatalogSettings, PromptSettings
from sda_features.demo.catalogue import make_catalogue
from sda_features.errors import CheckpointError, EngineError, SettingsError
from sda_features.feature_store.offline_rows import FolderRows, Staging
from sda_features.feature_store.repo import open_feature_set
from sda_features.lvlm.backbone import PromptBatch
from sda_features.lvlm.checkpoint import LoadedEncoder, pretrained, unadapted
from sda_features.lvlm.encoded_items import EncodedItems
from sda_features.offline.location import open_folder
from sda_features.offline.parts import newest_batches, part_paths
from sda_features.offline.schema import matrix_of
from sda_features.workflows import MaterializeResult, materialize
from sda_features.workflows.engines import Engine, local_engine
from tests.lvlm.dual_models import build_dual_model
from tests.s3_server import s3_server
from tests.shop import on_cpu, tiny_encoder
from tests.workflows.stores import assert_alike, served, with_column

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:ray")  # of Ray, about Ray
ITEMS, SHARD_ROWS, CALLS_BEFORE_DEATH = 60, 8, 3


def test_without_ray_the_engine_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "sda_features.workflows.ray_engine", raising=False)
    done = CliRunner().invoke(cli, ["materialize", "items.parquet", "--model", "x", "--engine", "ray"])
    assert "needs ray, which is not installed: pip install 'sda-features[ray]'" in explain(done.exception)


def test_options_of_the_cluster_are_not_ignored():
    done = CliRunner().invoke(cli, ["materialize", "items.parquet", "--model", "x", "--workers", "2"])
    assert isinstance(done.exception, SettingsError)


def test_a_cluster_that_does_not_answer_is_named():
    pytest.importorskip("ray", reason="the extra ray is not installed")
    from sda_features.workflows.ray_engine import _cluster

    with (
        pytest.raises(EngineError, match="Ray cannot be reached at ray://127.0.0.1:1: "),
        _cluster("ray://127.0.0.1:1", None),
    ):
        pass


def test_a_worker_that_does_not_see_the_folder_hands_vectors_back(tmp_path):
    (tmp_path / ".part-1").touch()
    assert Staging(tmp_path, "string", ".part-1").is_here()
    assert not Staging(tmp_path, "string", ".part-2").is_here()
    assert not Staging(tmp_path / "elsewhere", "string", ".part-1").is_here()


@dataclass(frozen=True)
class Mortal(LoadedEncoder):
    """An encoder whose process is killed once in the life of `marker`, in the middle of its work."""

    marker: Path = Path()
    calls: Iterator[int] = field(default_factory=partial(count, 1))

    def vectors(self, batch: PromptBatch) -> Tensor:
        if next(self.calls) == CALLS_BEFORE_DEATH:
            with contextlib.suppress(FileExistsError):
                self.marker.touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        return super().vectors(batch)


def load(settings: BackboneSettings, marker: Path | None = None) -> LoadedEncoder:
    loaded = unadapted(settings, PromptSettings())
    if marker is None:
        return loaded
    return Mortal(**vars(loaded), marker=marker)


def fail() -> LoadedEncoder:
    raise CheckpointError("damaged in this worker")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, new_repo: Callable[..., Path]) -> Path:
    """A folder with a partitioned catalogue before/ and after/ a change, model/, and repos for both engines."""
    folder = tmp_path_factory.mktemp("shop")
    make_catalogue(ITEMS).write(folder / "items.parquet")
    table = pq.read_table(folder / "items.parquet")
    titles = table["title"].to_pylist()
    titles[::9] = [f"changed {row}" for row in range(0, len(titles), 9)]
    changed = with_column(table, "title", titles)
    keep = pa.array([row % 20 != 5 for row in range(len(table))])
    for name, rows in {"before": table, "after": changed.filter(keep)}.items():
        for number in range(3):  # three files of small row groups, in folders that make a text column
            part = folder / name / f"shelf={number}" / "items.parquet"
            part.parent.mkdir(parents=True)
            pq.write_table(rows.slice(number * len(rows) // 3, len(rows) // 3), part, row_group_size=6)
    tiny_encoder(folder / "model")
    for name in ("local", "ray", "dual-local", "dual-ray"):
        new_repo(folder / name, feature_sets=["sda"])
    return folder


@pytest.fixture(scope="module")
def backbone(shop: Path) -> BackboneSettings:
    return on_cpu(shop / "model", dtype="float32")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(scope="module")
def cluster(bucket: str) -> Iterator[None]:
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    from sda_features.workflows.ray_engine import _cluster

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_worker_niceness", "0")  # 15 by default, which a busy machine never gets to
        with _cluster(None, workers=2):
            yield
    assert not ray.is_initialized()


@pytest.fixture
def ray_engine(cluster: None) -> Engine:
    from sda_features.workflows.ray_engine import ray_engine

    return partial(ray_engine, workers=2)


def run(shop, engine, catalogue, loader, repo=None) -> MaterializeResult:
    return materialize(
        shop / (repo or ("local" if engine is local_engine else "ray")),
        "sda",
        CatalogSettings.parse(path=f"file://{shop / catalogue}"),
        loader,
        engine=engine,
        batch_size=4,
        shard_rows=SHARD_ROWS,
        progress=False,
    )


@pytest.mark.slow
def test_a_dual_encoder_runs_there_too(shop, ray_engine):
    """Texts that were cut are counted in the workers."""
    build_dual_model(shop / "clip", "clip")
    settings = on_cpu(shop / "clip", dtype="float32")
    loader = partial(pretrained, settings, PromptSettings())
    local = run(shop, local_engine, "before", loader, "dual-local")
    ray = run(shop, ray_engine, "before", loader, "dual-ray")
    assert local.encoded > 0, "vacuous"
    assert local.texts_cut > 0, "vacuous"
    assert (ray.version, ray.encoded, ray.texts_cut) == (local.version, local.encoded, local.texts_cut)
    ids = sorted(set(filter(None, Catalog(CatalogSettings.parse(path=shop / "before")).ids())))
    want, got = (served(shop / f"dual-{name}", "sda", ids, local.version) for name in ("local", "ray"))
    assert want.text_found.sum() > local.texts_cut
    assert_alike(got, want)


@pytest.mark.slow
def test_each_worker_has_a_gpu_of_its_own(shop, tmp_path):
    """Ray counts GPUs that are not there, and shows each worker its own."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    command = [sys.executable, "-m", "tests.ray_gpus", shop / "before", shop / "model", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["workers"], found["options"]) == (2, {"num_cpus": 1, "num_gpus": 1.0})
    assert found["encoded"] > 0
    assert "at most 2 workers, got 3: the cluster has 4 CPUs and 2 GPUs" in found["refused"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu-0", "gpu-1"]


def rows_of(repo: Path) -> pa.Table:
    """All offline rows, by id and time."""
    parts = part_paths(open_feature_set(repo, "sda").folder)
    order = [("item_id", "ascending"), ("event_timestamp", "ascending")]
    return pa_dataset.dataset(parts).to_table().sort_by(order)


def check_equal(shop: Path, local: MaterializeResult, ray: MaterializeResult) -> None:
    """Both engines report the same and have stored the same, offline and online."""
    for name in ("version", "encoded", "unchanged", "removed", "online_rows"):
        assert getattr(ray, name) == getattr(local, name), name
    by_row = [sorted(result.report.problems, key=lambda problem: problem["row"]) for result in (local, ray)]
    assert by_row[0] == by_row[1]
    want, got = rows_of(shop / "local"), rows_of(shop / "ray")
    check_rows(want, got)
    assert len(got["event_timestamp"].unique()) == len(want["event_timestamp"].unique())
    ids = want["item_id"].unique().to_pylist()
    assert_alike(*(served(shop / name, "sda", ids) for name in ("ray", "local")))


def check_rows(want: pa.Table, got: pa.Table) -> None:
    """Rows of the same items, versions, hashes and vectors."""
    for name in ("item_id", "adapter_version", "content_hash"):
        assert got[name].to_pylist() == want[name].to_pylist()
    assert_alike(vectors_of(got), vectors_of(want))


def vectors_of(rows: pa.Table) -> EncodedItems:
    matrices = (*matrix_of(rows["text_embedding"]), *matrix_of(rows["image_embedding"]))
    return EncodedItems(rows["item_id"].to_pylist(), rows["content_hash"].to_pylist(), *matrices)


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_and_the_result_is_that_of_the_local_engine(shop, backbone, ray_engine):
    """First everything is encoded, then what has changed; partitioned parquet at a URL."""
    local = run(shop, local_engine, "before", partial(load, backbone))
    marker = shop / "killed"
    ray = run(shop, ray_engine, "before", partial(load, backbone, marker))
    assert marker.exists(), "vacuous: no worker was killed"
    assert ray.report.bad_rows > 0, "vacuous: every row is good"
    check_equal(shop, local, ray)
    assert len(rows_of(shop / "ray")) == ray.encoded, "a row is stored twice, or not at all"

    local = run(shop, local_engine, "after", partial(load, backbone))
    ray = run(shop, ray_engine, "after", partial(load, backbone))
    assert min(ray.encoded, ray.unchanged, ray.removed) > 0, "vacuous"
    check_equal(shop, local, ray)


@pytest.mark.slow
def test_workers_write_at_a_url(shop, bucket, backbone, ray_engine, new_repo, monkeypatch):
    """Row for row what the local engine writes in a folder; this process writes no row."""
    new_repo(shop / "s3", feature_sets=["sda"], source_folder=f"{bucket}/ray")
    local = run(shop, local_engine, "after", partial(load, backbone))
    monkeypatch.setattr(FolderRows, "write", None)
    ray = run(shop, ray_engine, "after", partial(load, backbone), "s3")
    assert ray.encoded == ray.online_rows == local.online_rows
    folders = [open_feature_set(shop / name, "sda").folder for name in ("local", "s3")]
    want, got = (pa.Table.from_batches(newest_batches(folder)).sort_by("item_id") for folder in folders)
    check_rows(want, got)
    left = [info.base_name for info in open_folder(folders[1]).get_file_info(FileSelector(""))]
    assert not [name for name in left if name.startswith(".part-")], "staged files are left"


@pytest.mark.slow
def test_what_goes_wrong_in_a_worker_is_said_as_it_is_here(shop, backbone, ray_engine):
    with pytest.raises(CheckpointError, match="^damaged in this worker$"):
        run(shop, ray_engine, "before", fail)
    with pytest.raises(SettingsError, match="Expected at most 2 workers, got 3"):
        run(shop, partial(ray_engine, workers=3), "before", partial(load, backbone))
