"""Repo, parts, registry, Redis and back: real Feast, real server."""

import json
import re
import runpy
import shutil

import numpy as np
import pytest
import redis
from click.testing import CliRunner

from sda_features.errors import FeatureStoreError, OnlineStoreError
from sda_features.feature_store.matrices import load_vectors
from sda_features.feature_store.repo import open_feature_set, quiet_feast
from sda_features.feature_store.to_online import materialize_view
from sda_features.serving import EmbeddingClient, layout
from sda_features.serving.embedded import embedded_redis
from tests.feast_repo import NOON, Rows, config, run_feast

ROWS = Rows.random(["B001", "B 002", "ü/漢:3", *"abcdefgh"])


def read_with_feast(repo, view, entity_rows):
    """What stock Feast's online read returns: {feature: values}."""
    with quiet_feast():
        from feast import FeatureStore

        features = [f"{view}:{feature}" for feature in layout.FEATURES]
        store = FeatureStore(repo_path=str(repo))
        return store.get_online_features(features=features, entity_rows=entity_rows).to_dict()


def assert_feast_reads(rows, read):
    for feature, matrix, found in (
        (layout.TEXT, rows.text, rows.text_found),
        (layout.IMAGE, rows.image, rows.image_found),
    ):
        assert [values is not None for values in read[feature]] == found.tolist()
        got = np.array([values for values in read[feature] if values is not None], np.float32)
        assert got.tobytes() == matrix[found].tobytes()


@pytest.fixture(scope="module")
def shop(tmp_path_factory, redis_server, new_project):
    """A repo fresh from `feast init`, `sda-features init` and `feast apply`, with `sda` materialized."""
    from sda_features.cli.start import init as command

    folder = tmp_path_factory.mktemp("shop")
    project = new_project()
    run_feast("init", project, cwd=folder)
    repo = folder / project / "feature_repo"
    before = sorted(repo.iterdir())
    done = CliRunner().invoke(command, [str(repo)], catch_exceptions=False)
    assert "The online store of this repo is sqlite" in done.output
    assert sorted(repo.iterdir()) == sorted(
        [*before, repo / "sda-features.toml", repo / "sda_item_embeddings.py"]
    )
    (repo / "feature_store.yaml").write_text(config(project, redis_server))
    printed = run_feast("apply", cwd=repo)
    for view in ("driver_hourly_stats", "sda_item_embeddings", "vanilla_item_embeddings"):
        assert f"Deploying infrastructure for {view}\n" in printed
    ROWS.write(open_feature_set(repo, "sda").folder)
    assert materialize_view(repo, "sda").rows == len(ROWS.ids)
    return repo


def test_stock_feast_reads_what_was_written(shop):
    read = read_with_feast(shop, "sda_item_embeddings", [{"item_id": item_id} for item_id in ROWS.ids])
    assert_feast_reads(ROWS, read)
    assert read[layout.VERSION] == ["v1"] * len(ROWS.ids)


def test_the_client_reads_what_was_written(shop):
    with EmbeddingClient.from_repo(shop, "sda", dim=5) as client:
        found = client.get(ROWS.ids)
        unknown = client.get(["nobody"])
    ROWS.assert_equal(found)
    assert set(found.versions) == {"v1"}
    assert not unknown.text_found.any()


def test_the_offline_store_returns_what_was_written(shop):
    found = load_vectors(shop, "sda", ROWS.ids)
    ROWS.assert_equal(found)
    assert found.versions == ("v1",)


def test_load_vectors_follows_the_request(shop):
    found = load_vectors(shop, "sda", ["c", "nobody", "B001", "c"])
    rows = [ROWS.ids.index("c"), ROWS.ids.index("B001")]
    assert found.text_found.tolist() == [True, False, True, True]
    assert found.text[[0, 2]].tobytes() == ROWS.text[rows].tobytes()
    assert found.text[3].tobytes() == found.text[0].tobytes()
    assert not found.text[1].any()
    nobody = load_vectors(shop, "sda", ["nobody"])
    assert (nobody.text.shape, nobody.versions) == ((1, 5), ())
    assert load_vectors(shop, "sda", []).text.shape == (0, 5)


def test_a_view_without_rows(shop):
    for call in (lambda: load_vectors(shop, "vanilla", ["a"]), lambda: materialize_view(shop, "vanilla")):
        with pytest.raises(
            FeatureStoreError, match=r"no rows of vanilla_item_embeddings.*sda-features materialize"
        ):
            call()


def test_a_view_that_is_missing(shop):
    with pytest.raises(
        FeatureStoreError,
        match=r"no feature view vit_item_embeddings; .*: sda_item_embeddings, sda_item_embeddings_2, vanilla_",
    ):
        load_vectors(shop, "vit", ["a"])


def test_a_repo_that_is_not_applied(tmp_path, new_project):
    (tmp_path / "feature_store.yaml").write_text(config(new_project(), None))
    with pytest.raises(FeatureStoreError, match="Nothing is registered .* Run `feast apply`"):
        load_vectors(tmp_path, "sda", ["a"])


def test_lookup(shop):
    from sda_features.cli.serve import lookup as command

    def lookup(*arguments):
        return CliRunner().invoke(command, [*arguments, "--repo", str(shop)], catch_exceptions=False)

    lines = lookup("B001", "B 002", "nobody").stdout.splitlines()
    norm = np.linalg.norm(ROWS.text[0].astype(float))
    assert lines[0] == "B001  version v1"
    assert lines[1].startswith(f"  text  found, dimension 5, norm {norm:.4f}: [-0, ")
    assert lines[3:] == [
        "B 002  version v1",
        "  text  missing",
        "  image missing",
        "nobody  not in the online store",
    ]
    (item,) = json.loads(lookup("B001", "--full", "--json", "--modality", "text").stdout)["items"]
    assert np.array(item["text"]["values"], np.float32).tobytes() == ROWS.text[0].tobytes()
    assert "image" not in item
    hint = lookup("nobody", "--feature-set", "vanilla")
    assert "No vectors of vanilla_item_embeddings" in hint.stderr
    assert hint.exit_code == 0


@pytest.fixture(scope="module")
def team(tmp_path_factory, redis_server, new_project):
    """A repo whose team has an integer item entity, in a folder and with a join key of its own."""
    from sda_features.feature_store.init import init_repo

    repo = tmp_path_factory.mktemp("team")
    (repo / "feature_store.yaml").write_text(config(new_project(), redis_server))
    (repo / "entities").mkdir()
    (repo / "entities" / "products.py").write_text(
        "from feast import Entity, ValueType\n\n"
        'product = Entity(name="goods", join_keys=["sku"], value_type=ValueType.INT64)\n'
    )
    done = init_repo(repo, feature_sets=["sda"], entity="goods")
    assert str(done.entity) == "entities.products:product"
    run_feast("apply", cwd=repo)
    return repo


def test_the_teams_entity_and_its_type_are_used(team):
    rows = Rows.random(["7", "0", "-12", str(2**62)])
    opened = open_feature_set(team, "sda")
    assert (opened.join_key, opened.id_type) == ("sku", "int64")
    rows.write(opened.folder, id_type=opened.id_type)
    done = materialize_view(team, "sda")
    assert (done.rows, done.checked) == (4, 4)
    read = read_with_feast(team, "sda_item_embeddings", [{"sku": int(item_id)} for item_id in rows.ids])
    assert_feast_reads(rows, read)
    with EmbeddingClient.from_repo(team, "sda", join_key="sku", id_type="int64") as client:
        rows.assert_equal(client.get(rows.ids))
        rows.assert_equal(client.get([int(item_id) for item_id in rows.ids]))
    rows.assert_equal(load_vectors(team, "sda", rows.ids))


def test_new_vectors_replace_old_ones_and_end_is_kept(make_repo, later):
    repo = make_repo()
    old, new = Rows.random(list("abcd"), seed=1), Rows.random(list("cbe"), seed=2)
    old.write(repo / "data/sda", version="v1")
    new.write(repo / "data/sda", version="v2", time=later(2))
    (repo / "data/sda/.part-half.parquet.x1").write_bytes(b"a part that is being written")
    assert materialize_view(repo, "sda", end=later(1)).rows == 4
    with EmbeddingClient.from_repo(repo, "sda") as client:
        old.assert_equal(client.get(old.ids))
        old.assert_equal(load_vectors(repo, "sda", old.ids, end=later(1)))
        assert materialize_view(repo, "sda").rows == 5
        new.assert_equal(client.get(new.ids))
        assert client.get(["a", "d"]).versions == ("v1", "v1")
        assert client.get(["a", "b", "d"]).versions == ("v1", None, "v1")  # one version, that of most
    found = load_vectors(repo, "sda", new.ids)
    new.assert_equal(found)
    assert found.versions == ("v2",)
    assert load_vectors(repo, "sda", ["a", "b"]).versions == ("v1", "v2")


def test_a_catalogue_without_pictures(make_repo):
    repo = make_repo()
    rows = Rows.random(list("abc"))
    rows.image_found[:] = False
    rows.image[:] = 0
    rows.write(repo / "data/sda")
    materialize_view(repo, "sda")
    rows.assert_equal(load_vectors(repo, "sda", rows.ids))
    with EmbeddingClient.from_repo(repo, "sda") as client:
        rows.assert_equal(client.get(rows.ids))


def test_another_project_is_left_alone_and_the_run_is_quiet(make_repo, redis_server, capfd):
    rows = Rows.random(list("abc"))
    ours, other = make_repo(name="ours"), make_repo(name="other")
    for repo in (other, ours):
        rows.write(repo / "data/sda")
    materialize_view(other, "sda")
    keys = layout.redis_keys(rows.ids, project=open_feature_set(other, "sda").config.project)
    with redis.Redis(*redis_server) as server:
        before = [server.dump(key) for key in keys]
        assert None not in before
        capfd.readouterr()
        materialize_view(ours, "sda")
        assert capfd.readouterr() == ("", "")
        assert [server.dump(key) for key in keys] == before


def test_rows_are_written_in_batches(make_repo, monkeypatch):
    monkeypatch.setattr("sda_features.feature_store.to_online.BATCH_ROWS", 7)
    repo = make_repo()
    rows = Rows.random([f"i{number}" for number in range(23)])
    rows.write(repo / "data/sda")
    done = materialize_view(repo, "sda")
    assert (done.rows, done.checked) == (23, 23)
    with EmbeddingClient.from_repo(repo, "sda") as client:
        rows.assert_equal(client.get(rows.ids))


def test_an_entity_that_was_not_registered(make_repo):
    repo = make_repo(entity=False)
    Rows.random(list("abc")).write(repo / "data/sda")
    with pytest.raises(FeatureStoreError, match="could not materialize .* import it by name"):
        materialize_view(repo, "sda")


def test_a_server_that_is_not_there(make_repo):
    repo = make_repo()
    Rows.random(list("abc")).write(repo / "data/sda")
    path = repo / "feature_store.yaml"
    path.write_text(re.sub(r"'.*:\d+'", "'127.0.0.1:1,password=s3cret'", path.read_text()))
    with pytest.raises(
        OnlineStoreError, match=r"Redis server at 127\.0\.0\.1:1, but it cannot be reached"
    ) as raised:
        materialize_view(repo, "sda")
    assert "s3cret" not in str(raised.value)


def test_rows_that_a_full_server_drops(make_repo):
    with embedded_redis() as server:
        repo = make_repo(server=server)
        rows = Rows.random([f"i{number}" for number in range(60)], dim=20_000)
        rows.write(repo / "data/sda")
        with redis.Redis(*server) as admin:
            admin.config_set("maxmemory-policy", "allkeys-random")
            admin.config_set("maxmemory", admin.info("memory")["used_memory"] + 4_000_000)
        with pytest.raises(OnlineStoreError, match=r"Expected 60 items .* did not arrive.*maxmemory-policy"):
            materialize_view(repo, "sda")


def test_an_online_store_that_is_not_redis(make_repo):
    repo = make_repo(server=None)
    rows = Rows.random(list("abc"))
    rows.write(repo / "data/sda")
    assert materialize_view(repo, "sda").checked == 3
    assert_feast_reads(rows, read_with_feast(repo, "sda_item_embeddings", [{"item_id": i} for i in rows.ids]))
    with pytest.raises(OnlineStoreError, match="got sqlite"):
        EmbeddingClient.from_repo(repo, "sda")


def test_the_repo_of_this_project(tmp_path, redis_server, monkeypatch, request):
    repo = tmp_path / "feature_repo"
    shutil.copytree(
        request.config.rootpath / "feature_repo", repo, ignore=shutil.ignore_patterns("data", "__pycache__")
    )
    assert str(EmbeddingClient.from_repo(repo, "sda").address) == "localhost:6379"
    monkeypatch.setenv("FEAST_FS_YAML_FILE_PATH", str(repo / "feature_store.env.yaml"))
    monkeypatch.setenv("SDA_REDIS", "{}:{}".format(*redis_server))
    with quiet_feast():
        from feast import Entity, FeatureStore, FeatureView

        names = runpy.run_path(str(repo / "feature_definitions.py")).values()
        FeatureStore(repo_path=str(repo)).apply(
            [value for value in names if isinstance(value, Entity | FeatureView)]
        )
    rows = Rows.random(list("abc"))
    rows.write(open_feature_set(repo, "sda").folder, time=NOON)
    materialize_view(repo, "sda")
    with EmbeddingClient.from_repo(repo, "sda") as client:
        rows.assert_equal(client.get(rows.ids))
