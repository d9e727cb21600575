"""A team's nightly `feast materialize-incremental` goes on working, whatever state the slots are in."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from feast.infra.offline_stores.dask import DaskOfflineStore, DaskOfflineStoreConfig

from sda_features.feature_store.init import FILE_NAME, init_repo
from sda_features.feature_store.lifecycle import prune, rollback
from sda_features.feature_store.repo import open_slots, quiet_feast
from sda_features.feature_store.to_online import materialize_view
from sda_features.feature_store.versions import open_versions, record_version
from tests.feast_repo import NOON, Rows
from tests.feast_repo import apply as apply_ours

ITEM = """from feast import Entity, ValueType

item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)
"""
VIEWS = """from datetime import timedelta

from feast import FeatureView, Field, FileSource, PushSource
from feast.types import Float32

from entities import item

fields = [Field(name="price", dtype=Float32)]
sales = FileSource(name="sales", path="data/sales.parquet", timestamp_field="event_timestamp")
pushed = PushSource(name="sales_push", batch_source=sales)
aaa = FeatureView(name="aaa", entities=[item], ttl=timedelta(0), schema=fields, source=sales)
zzz = FeatureView(name="zzz", entities=[item], ttl=timedelta(0), schema=fields, source=pushed)
"""
SERVICE = """from feast import FeatureService

from sda_item_embeddings import sda_item_embeddings
from views import aaa, zzz

mixed = FeatureService(name="mixed", features=[aaa, sda_item_embeddings, zzz])
"""
OURS = "sda_features.feature_store"


class WarehouseOfflineStoreConfig(DaskOfflineStoreConfig):
    """Settings of `WarehouseOfflineStore`."""

    type: str = "tests.feature_store.test_team_jobs.WarehouseOfflineStore"


class WarehouseOfflineStore(DaskOfflineStore):
    """Like a warehouse, it knows the team's own table and no folder of parquet files."""

    @staticmethod
    def pull_latest_from_table_or_query(config, data_source, *arguments, **named):
        assert data_source.path == "data/sales.parquet", "a warehouse reads no folders"
        return DaskOfflineStore.pull_latest_from_table_or_query(config, data_source, *arguments, **named)


REPOS = {
    "stock": "registry: data/registry.db\n",
    "ours, a SQL registry": (
        "registry: {registry_type: sql, path: 'sqlite:///data/registry.sqlite'}\n"
        f"batch_engine: {{type: {OURS}.engine.VectorEngine}}\n"
        f"offline_store: {{type: {OURS}.offline_store.VectorFileOfflineStore}}\n"
    ),
    "a warehouse": f"registry: data/registry.db\noffline_store: {{type: {__name__}.WarehouseOfflineStore}}\n",
}


@pytest.fixture(params=REPOS)
def repo(request, tmp_path, redis_server, new_project, monkeypatch):
    host, port = redis_server
    (tmp_path / "data").mkdir()
    (tmp_path / "feature_store.yaml").write_text(
        f"project: {new_project()}\nprovider: local\nentity_key_serialization_version: 3\n"
        f"online_store: {{type: redis, connection_string: '{host}:{port}'}}\n{REPOS[request.param]}"
    )
    (tmp_path / "entities.py").write_text(ITEM)
    (tmp_path / "views.py").write_text(VIEWS)
    monkeypatch.chdir(tmp_path)  # where a SQL registry's relative path begins
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("entities", "views", "services", Path(FILE_NAME).stem):
        sys.modules.pop(name, None)


def apply(repo):
    """`feast apply` without the start of another Python."""
    with quiet_feast():
        from feast.repo_config import load_repo_config
        from feast.repo_operations import apply_total

        apply_total(load_repo_config(repo, repo / "feature_store.yaml"), repo, skip_source_validation=False)


def store_of(repo):
    from feast import FeatureStore

    return FeatureStore(repo_path=str(repo))


def nightly(repo, price):
    """New prices, the team's own job, and what stock Feast then serves of `aaa` and `zzz`."""
    row = {"item_id": ["a"], "price": [price], "event_timestamp": [datetime.now(UTC)]}
    pd.DataFrame(row).astype({"price": "float32"}).to_parquet(repo / "data" / "sales.parquet")
    with quiet_feast():
        store = store_of(repo)
        store.materialize_incremental(datetime.now(UTC))
        names = ["aaa:price", "zzz:price"]
        found = store.get_online_features(names, [{"item_id": "a"}], full_feature_names=True).to_dict()
    assert [found["aaa__price"], found["zzz__price"]] == [[price], [price]]


def write_version(repo, version, slot, promote=False):
    with open_versions(repo, "sda") as versions:
        opened = versions.slots[slot - 1]
        Rows.random(["a", "b"], seed=slot).write(opened.folder, version=version)
        materialize_view(repo, "sda", slot=slot)
        record_version(versions, opened, version, promote=promote)


def test_the_teams_job_runs_in_every_state(repo):
    apply(repo)
    nightly(repo, 1.0)
    init_repo(repo, feature_sets=["sda", "small:int8"])
    (repo / "services.py").write_text(SERVICE)
    apply(repo)
    nightly(repo, 2.0)
    write_version(repo, "v1", 1)
    nightly(repo, 3.0)
    write_version(repo, "v2", 2, promote=True)
    nightly(repo, 4.0)
    with quiet_feast():
        store = store_of(repo)
        mixed = store.get_online_features(
            store.get_feature_service("mixed"),
            [{"item_id": "a"}, {"item_id": "nobody"}],
            full_feature_names=True,
        ).to_dict()
        store.push("sales_push", pd.DataFrame({"item_id": ["a"], "price": [5.0], "event_timestamp": [NOON]}))
    assert mixed["zzz__price"] == [4.0, None]
    assert mixed["sda_item_embeddings__adapter_version"] == ["v1", None]
    with open_versions(repo, "sda") as versions:
        rollback(versions)
        assert [state.version for state in prune(versions)] == ["v2"]
    nightly(repo, 6.0)
    write_version(repo, "v3", 2)
    nightly(repo, 7.0)


def test_views_that_the_nightly_job_leaves_out_reach_another_online_store(tmp_path, new_project, monkeypatch):
    """`--no-feast-materialize`, and a machine of the nightly job that lacks the folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "feature_store.yaml").write_text(
        f"project: {new_project()}\nprovider: local\nregistry: data/registry.db\n"
        "online_store: {path: data/online.db}\n"
    )
    done = init_repo(tmp_path, feature_sets=["sda"], slots=1, feast_materialize=False)
    assert "online=False" in done.path.read_text()
    apply_ours(tmp_path)
    (opened,) = open_slots(tmp_path, "sda")
    with quiet_feast():
        store_of(tmp_path).materialize_incremental(datetime.now(UTC))
    Rows.random(["a", "b"]).write(opened.folder)
    assert materialize_view(tmp_path, "sda").rows == 2


def test_init_names_the_store_to_switch_to(tmp_path):
    from sda_features.cli.start import init as command

    store = "sda_features.feast_plugins.online_store.VectorRedisOnlineStore"
    (tmp_path / "feature_store.yaml").write_text(f"project: shop\nonline_store:\n  type: {store}\n")
    done = CliRunner().invoke(command, [str(tmp_path)], catch_exceptions=False)
    assert store in done.output
    assert "type: redis" in done.output
    assert (tmp_path / FILE_NAME).exists()
