"""From catalogue to ranking through real Feast and a real server, on a tiny model."""

from __future__ import annotations

import contextlib
import http.server
import re
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest

from sda_features.config import CatalogSettings, EvaluationSettings, RecommenderSettings
from sda_features.demo.catalogue import make_catalogue
from sda_features.demo.purchases import make_interactions
from sda_features.errors import CatalogError, FeatureMismatchError, FeatureStoreError, OnlineStoreError
from sda_features.feature_store.lifecycle import list_versions, rollback
from sda_features.feature_store.matrices import load_vectors
from sda_features.feature_store.repo import open_feature_set
from sda_features.feature_store.versions import open_versions, slot_for
from sda_features.lvlm.checkpoint import LoadedEncoder
from sda_features.offline.parts import newest_timestamp
from sda_features.recommenders.saved import load_run
from sda_features.serving import EmbeddingClient
from sda_features.workflows import MaterializeResult, materialize, train_recommender
from tests.shop import catalog, run, tiny_encoder
from tests.workflows.stores import served, with_column

ITEMS = 60
train_sasrec = partial(train_recommender, settings=RecommenderSettings(), evaluation=EvaluationSettings())


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, new_repo: Callable[..., Path]) -> Path:
    """A folder with items.parquet, log.parquet, model/, and an applied Feast repo in repo/."""
    folder = tmp_path_factory.mktemp("shop")
    catalogue = make_catalogue(ITEMS)
    catalogue.write(folder / "items.parquet")
    pq.write_table(make_interactions(catalogue, users=60), folder / "log.parquet")
    tiny_encoder(folder / "model")
    new_repo(folder / "repo")
    return folder


def vanilla(shop: Path, **prompts: Any) -> Callable[[], LoadedEncoder]:
    return tiny_encoder(shop / "model", **prompts)


def test_commands_run_from_catalogue_to_ranking(shop, tmp_path):
    """adapt, materialize, materialize again after a change, lookup, train."""
    items, repo, checkpoint = shop / "items.parquet", shop / "repo", tmp_path / "run" / "checkpoint"
    sizes = ("--steps", 3, "--batch-size", 8, "--quantization", "nf4")
    adapted = run("adapt", items, "--model", shop / "model", "-o", tmp_path / "run", *sizes)
    assert f"5 of {ITEMS + 2} rows have problems" in adapted
    options = ("--checkpoint", checkpoint, "--repo", repo)
    first = run("materialize", items, *options, "--shard-rows", 25)
    assert f"encoded    {ITEMS:,} items, 0 unchanged, 0 removed" in first

    table = pq.read_table(items)
    titles = table["title"].to_pylist()
    titles[7] = "changed"
    changed = tmp_path / "items.parquet"
    pq.write_table(with_column(table, "title", titles), changed)
    report = tmp_path / "report.jsonl"
    again = run("materialize", changed, *options, "--report", report)
    assert f"encoded    1 items, {ITEMS - 1} unchanged" in again
    assert len(report.read_text().splitlines()) == 5

    shown = run("lookup", table["item_id"][7].as_py(), "--repo", repo)
    assert "text  found, dimension 64, norm 1.0000" in shown
    quick = ("--epochs", 2, "--validate-every", 1, "--eval-negatives", 20)
    train = ("train", shop / "log.parquet", "--features", "sda", "--repo", repo)
    trained = run(*train, "-o", tmp_path / "sasrec", *quick)
    assert "| sampled-20 | tail" in trained
    loaded = load_run(tmp_path / "sasrec")
    found = served(repo, "sda", loaded.item_ids, loaded.vectors_version)
    assert set(found.versions) == {loaded.vectors_version} != {None}
    # Vectors read from Redis give the scores of the representations saved with the run.
    history, vectors = loaded.item_ids[:5], {"text": found.text, "image": found.image}
    rows = {name: np.concatenate([matrix[:5], matrix]) for name, matrix in vectors.items()}
    np.testing.assert_allclose(
        loaded.score(history, loaded.item_ids, rows).scores,
        loaded.score(history, loaded.item_ids).scores,
        atol=1e-5,
    )


def test_vectors_online_are_those_of_the_encoder(shop):
    from sda_features.catalog.rows import Catalog
    from sda_features.lvlm.encode import encode_items

    items = CatalogSettings.parse(path=shop / "items.parquet")
    result = materialize(shop / "repo", "vanilla", items, vanilla(shop), progress=False)
    (expected,) = encode_items(vanilla(shop)(), Catalog(items).items())
    found = served(shop / "repo", "vanilla", expected.item_ids)
    np.testing.assert_array_equal(found.text, expected.text)
    np.testing.assert_array_equal(found.image, expected.image)
    np.testing.assert_array_equal(found.image_found, expected.image_found)
    assert not found.image_found.all(), "vacuous: the demo's catalogue has broken pictures"
    assert set(found.versions) == {result.version}


@pytest.fixture
def half_bad(shop: Path, tmp_path: Path) -> tuple[CatalogSettings, CatalogSettings]:
    """A catalogue of 40 items, and the same with pictures that turn bad half-way."""
    table = pq.read_table(shop / "items.parquet").slice(0, 40)
    pictures = table["image"].to_pylist()
    pq.write_table(table, tmp_path / "good.parquet")
    broken = with_column(table, "image", [*pictures[:20], *[b"broken"] * 20])
    pq.write_table(broken, tmp_path / "bad.parquet")
    good, bad = (CatalogSettings.parse(path=tmp_path / f"{name}.parquet") for name in ("good", "bad"))
    return good, bad


def test_an_interrupted_run_keeps_its_finished_shards(shop, half_bad):
    """What was encoded until the catalogue turned bad is not encoded again; the live version stays live."""
    good, bad = half_bad
    encoder = vanilla(shop, text_instruction="Another version.")
    ids = pq.read_table(shop / "items.parquet")["item_id"].to_pylist()[:2]
    before = served(shop / "repo", "vanilla", ids)
    with pytest.raises(CatalogError, match="above --max-bad-rows"):
        materialize(shop / "repo", "vanilla", bad, encoder, shard_rows=5, progress=False)
    with open_versions(shop / "repo", "vanilla") as versions:
        assert [state.state for state in list_versions(versions)] == ["live", "unrecorded"]
    result = materialize(shop / "repo", "vanilla", good, encoder, progress=False)
    assert result.unchanged >= 15
    assert result.encoded == 40 - result.unchanged
    assert result.live != result.version
    promoted = materialize(shop / "repo", "vanilla", good, encoder, promote=True, progress=False)
    assert (promoted.encoded, promoted.live) == (0, promoted.version)
    with open_versions(shop / "repo", "vanilla") as versions:
        rollback(versions)
    after = served(shop / "repo", "vanilla", ids)
    assert after.text.tobytes() == before.text.tobytes()
    assert after.versions == before.versions


def test_items_that_are_gone_are_removed_and_too_many_are_refused(shop, new_repo, tmp_path, monkeypatch):
    """Online, offline, and nothing of it before the catalogue is trusted; the clock is set back meanwhile."""
    repo = new_repo(shop / "shrinking", feature_sets=["gone"])
    table = pq.read_table(shop / "items.parquet").slice(0, 40)
    ids = table["item_id"].to_pylist()
    for name, rows in {"all": table, "most": table.slice(3), "few": table.slice(30)}.items():
        pq.write_table(rows, tmp_path / f"{name}.parquet")

    def run(name: str, **options: Any) -> MaterializeResult:
        items = CatalogSettings.parse(path=tmp_path / f"{name}.parquet")
        return materialize(repo, "gone", items, vanilla(shop), progress=False, **options)

    assert run("all").removed == 0
    with pytest.raises(
        CatalogError, match=r"30 of 40 stored items, .* above --max-removed 0.1. Nothing was changed"
    ):
        run("few")
    with EmbeddingClient.from_repo(repo, "gone") as client:
        assert client.get(ids).text_found.any(axis=0)
        before = client.get(ids[3:])
        result = run("most")
        assert (result.encoded, result.unchanged, result.removed, result.online_rows) == (0, 37, 3, 37)
        assert not client.get(ids[:3]).text_found.any()
        assert client.get(ids[3:]).text.tobytes() == before.text.tobytes()
    assert load_vectors(repo, "gone", ids).text_found.tolist()[:4] == [False] * 3 + [True]

    newest = newest_timestamp(open_feature_set(repo, "gone").folder)
    assert newest is not None

    class SlowClock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return newest - timedelta(hours=1)

    for module in ("parts", "schema"):
        monkeypatch.setattr(f"sda_features.offline.{module}.datetime", SlowClock)
    titles = [f"changed {row}" for row in range(37)]
    pq.write_table(with_column(table.slice(3), "title", titles), tmp_path / "changed.parquet")
    assert run("changed").encoded == 37
    stamp = newest_timestamp(open_feature_set(repo, "gone").folder)
    assert stamp == newest + timedelta(microseconds=1)
    after = served(repo, "gone", ids[3:])
    assert after.text.tobytes() == load_vectors(repo, "gone", ids[3:]).text.tobytes()
    assert not np.array_equal(after.text, before.text)


def test_a_slot_has_one_writer(shop, half_bad):
    repo = shop / "repo"
    with (
        open_versions(repo, "vanilla") as versions,
        slot_for(versions.slots, versions, vanilla(shop)().version) as opened,
        pytest.raises(FeatureStoreError, match=f"Another run is writing version .* to slot {opened.slot}"),
    ):
        materialize(repo, "vanilla", half_bad[0], vanilla(shop), progress=False)


def test_vectors_of_two_versions_do_not_train_together(shop, new_repo, half_bad):
    """A feature set with one slot is written over; half-way it is no input for a trainer."""
    good, bad = half_bad
    repo = new_repo(shop / "narrow", slots=1)
    materialize(repo, "vanilla", good, vanilla(shop), progress=False)
    with pytest.raises(FeatureStoreError, match="--promote is for feature sets with versions"):
        materialize(repo, "vanilla", good, vanilla(shop), promote=True, progress=False)
    with pytest.raises(CatalogError):
        materialize(repo, "vanilla", bad, vanilla(shop, text_instruction="B"), shard_rows=5, progress=False)
    with pytest.raises(FeatureMismatchError, match="2 adapter versions"):
        train_sasrec(shop / "log.parquet", "vanilla", repo=repo)


def test_a_view_that_is_missing_or_a_store_that_is_down_is_found_before_the_model_loads(shop, tmp_path):
    def load() -> LoadedEncoder:
        raise AssertionError("the model was loaded")

    items = CatalogSettings.parse(path=shop / "items.parquet")
    with pytest.raises(FeatureStoreError, match="has no feature view clip_item_embeddings"):
        materialize(shop / "repo", "clip", items, load)
    down = tmp_path / "repo"
    down.mkdir()
    text = (shop / "repo" / "feature_store.yaml").read_text()
    settings = re.sub(r"'[\d.]+:\d+'", "'127.0.0.1:1,password=hush'", text)
    (down / "feature_store.yaml").write_text(
        settings.replace("data/registry.db", str(shop / "repo/data/registry.db"))
    )
    with pytest.raises(OnlineStoreError, match=r"127\.0\.0\.1:1") as error:
        materialize(down, "sda", items, load)
    assert "hush" not in str(error.value)


def test_a_log_of_other_items_is_refused(shop, tmp_path):
    rows = [{"user_id": "u", "item_id": f"other{n}", "position": n} for n in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    with pytest.raises(FeatureMismatchError, match="None of the 4 items of the log"):
        train_sasrec(tmp_path / "log.parquet", "sda", repo=shop / "repo")


@pytest.mark.fault
def test_a_picture_that_cannot_be_reached_costs_no_vector(shop, new_repo, tmp_path):
    """Its item keeps both vectors, offline and online, and the next run encodes it again if it has changed."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    table = pq.read_table(shop / "items.parquet").slice(0, 30)
    table = table.filter(pa.compute.is_valid(table["image"]))
    for number, picture in enumerate(table["image"].to_pylist()):
        (pictures / f"{number}.png").write_bytes(picture)
    down: set[str] = set()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path in down:
                self.send_error(503)
            else:
                super().do_GET()

        def log_message(self, *args: object) -> None:
            pass

    handler = partial(Handler, directory=str(pictures))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, contextlib.ExitStack() as ends:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        ends.callback(thread.join)
        ends.callback(server.shutdown)
        address = f"127.0.0.1:{server.server_address[1]}"
        urls = pa.array([f"http://{address}/{number}.png" for number in range(len(table))])
        with_urls = table.set_column(table.schema.get_field_index("image"), "image", urls)
        titles = table["title"].to_pylist()

        def run(titles: list[str], **limits: float) -> MaterializeResult:
            pq.write_table(with_column(with_urls, "title", titles), tmp_path / "items.parquet")
            settings = catalog(tmp_path / "items.parquet", image_hosts=(address,), max_bad_rows=0.5, **limits)
            return materialize(repo, "sda", settings, vanilla(shop), progress=False)

        repo = new_repo(tmp_path / "repo", feature_sets=["sda"])
        first = run(titles)
        ids = table["item_id"].to_pylist()
        before = load_vectors(repo, "sda", ids)
        assert before.image_found[:3].all(), "vacuous: no pictures"
        down |= {"/0.png", "/1.png", "/2.png"}
        with pytest.raises(CatalogError, match="above --max-unreachable 0.05; run again later"):
            run(titles)
        changed = ["another title", *titles[1:]]
        second = run(changed, max_unreachable=0.2)
        assert (second.encoded, second.unchanged) == (0, first.encoded)
        assert second.report.reasons()["image_unreachable"] == 3
        after = load_vectors(repo, "sda", ids)
        assert after.text.tobytes() == before.text.tobytes()
        assert after.image.tobytes() == before.image.tobytes()
        assert served(repo, "sda", ids[:3]).image_found.all()
        down.clear()
        third = run(changed)
        assert third.encoded == 1
        assert load_vectors(repo, "sda", ids[:1]).text.tobytes() != before.text[:1].tobytes()
