"""`sda-features init`: which entity it takes, what it writes, and what it leaves alone."""

import json
import sys

import pytest
from click.testing import CliRunner

from sda_features.cli.start import init as command
from sda_features.errors import FeatureStoreError, SettingsError
from sda_features.feature_store.init import FILE_NAME, init_repo

ITEM = 'item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)\n'


@pytest.fixture
def repo(tmp_path):
    (tmp_path / "feature_store.yaml").write_text("project: shop\n")
    return tmp_path


def write(repo, text, name="definitions.py"):
    path = repo / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def entity_lines(done):
    return [
        line for line in done.path.read_text().splitlines() if "import" in line or "item_entity(" in line
    ][1:]


def test_a_repo_without_items_gets_an_entity(repo):
    write(repo, 'driver = Entity(name="driver", join_keys=["driver_id"])')
    done = init_repo(repo)
    assert (done.action, done.entity, done.online_store) == ("created", None, "sqlite")
    assert done.views == tuple(
        f"{name}_item_embeddings{slot}" for name in ("sda", "vanilla") for slot in ("", "_2")
    )
    assert entity_lines(done) == ['item = item_entity("item_id")']


@pytest.mark.parametrize(
    ("name", "source", "imported"),
    [
        ("definitions.py", ITEM, "from definitions import item "),
        ("a/b.py", ITEM, "from a.b import item "),
        (
            "a.py",
            'import feast\nthing: feast.Entity = feast.Entity(join_keys=("item_id",), name="x")',
            "from a import thing ",
        ),
        ("a.py", 'product = Entity(name="item_id")', "from a import product "),
        ("a.py", ITEM.replace("STRING", "INT64"), "from a import item "),
    ],
)
def test_an_item_entity_is_imported_by_name(repo, name, source, imported):
    write(repo, source, name)
    (line,) = entity_lines(init_repo(repo))
    assert line.startswith(imported)


def test_what_is_not_a_module_of_the_repo_is_not_read(repo):
    for name in (".venv/x.py", "venv/lib/site-packages/x.py", "not-a-module.py", "__pycache__/x.py"):
        write(repo, ITEM, name)
    write(repo, "def entity(:\n", "broken.py")
    write(repo, f"def make():\n    {ITEM}", "inner.py")
    assert init_repo(repo).entity is None


def test_the_teams_files_are_not_run(repo):
    write(repo, f"raise SystemExit\n{ITEM}")
    assert str(init_repo(repo).entity) == "definitions:item"
    assert "definitions" not in sys.modules


@pytest.mark.parametrize("wanted", ["goods", "product", "definitions:product"])
def test_an_entity_is_named(repo, wanted):
    write(repo, f'{ITEM}product = Entity(name="goods", join_keys=["sku"])\n')
    done = init_repo(repo, entity=wanted)
    assert entity_lines(done)[0].startswith("from definitions import product ")
    assert 'embedding_view("sda", sda_source, product)' in done.path.read_text()


def test_an_entity_made_by_a_function_is_named_by_its_place(repo):
    write(repo, "item = make_entity()")
    (line,) = entity_lines(init_repo(repo, entity="definitions:item"))
    assert line.startswith("from definitions import item ")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (ITEM + ITEM.replace("item =", "again ="), {}, "definitions:item, definitions:again"),
        (ITEM, {"entity": "goods"}, r"'goods' in the repo, found: item \(definitions:item\)"),
        ("", {"entity": "goods"}, "found: none"),
        (ITEM.replace("STRING", "DOUBLE"), {}, "value_type STRING, INT32, INT64, got DOUBLE"),
        (ITEM.replace("item_id", "sku"), {}, "entity `item` at definitions:item with the join key 'sku'"),
        ("", {"feature_sets": []}, "at least one feature set and one slot, got 0 and 2"),
        ("", {"slots": 0}, "at least one feature set and one slot, got 2 and 0"),
    ],
)
def test_an_entity_that_does_not_fit(repo, source, options, message):
    write(repo, source)
    with pytest.raises(FeatureStoreError, match=message):
        init_repo(repo, **options)
    assert not (repo / FILE_NAME).exists()


def test_a_feature_set_needs_a_plain_name(repo):
    with pytest.raises(SettingsError, match="letters, digits and underscores"):
        init_repo(repo, feature_sets=["a; import os"])


def test_again_is_the_same_and_other_options_update(repo):
    first = init_repo(repo)
    text = first.path.read_text()
    assert init_repo(repo).action == "unchanged"
    assert first.path.read_text() == text
    done = init_repo(
        repo, feature_sets=["sda", "sda"], slots=1, source_folder="/srv/vectors/", join_key="sku"
    )
    assert (done.action, done.views) == ("updated", ("sda_item_embeddings",))
    assert 'embedding_source("sda", "/srv/vectors/sda", item)' in done.path.read_text()
    assert 'item_entity("sku")' in done.path.read_text()


def test_each_slot_has_a_view_and_a_folder_of_its_own(repo):
    text = init_repo(repo, feature_sets=["sda"], slots=3).path.read_text()
    assert text.endswith(
        """
sda_source = embedding_source("sda", "data/item_embeddings/sda", item)
sda_item_embeddings = embedding_view("sda", sda_source, item)
sda_source_2 = embedding_source("sda", "data/item_embeddings/sda_2", item, slot=2)
sda_item_embeddings_2 = embedding_view("sda", sda_source_2, item, slot=2)
sda_source_3 = embedding_source("sda", "data/item_embeddings/sda_3", item, slot=3)
sda_item_embeddings_3 = embedding_view("sda", sda_source_3, item, slot=3)
"""
    )


def test_slots_of_one_set_do_not_meet_another_set(repo):
    with pytest.raises(SettingsError, match="'sda' and feature set 'sda_2' would share the folder"):
        init_repo(repo, feature_sets=["sda", "sda_2"])
    init_repo(repo, feature_sets=["sda", "sda_2"], slots=1)


@pytest.mark.parametrize("edit", ["{}# mine\n", "# mine\n", "# mine\n{}", "", "{}\n"])
def test_an_edited_file_is_kept(repo, edit):
    path = init_repo(repo).path
    edited = edit.format(path.read_text())
    path.write_text(edited)
    with pytest.raises(FeatureStoreError, match="was edited, .*--force"):
        init_repo(repo)
    assert path.read_text() == edited
    assert init_repo(repo, force=True).action == "updated"
    assert init_repo(repo).action == "unchanged"


def test_the_command(repo):
    write(repo, ITEM.replace("item_id", "sku").replace("STRING", "INT64"))
    run = CliRunner().invoke(command, [str(repo), "--join-key", "sku", "--feature-sets", "a, b"])
    assert run.exit_code == 0
    assert "yours, definitions:item" in run.output
    assert "--join-key sku --id-type int64" in run.output
    again = CliRunner().invoke(
        command, [str(repo), "--join-key", "sku", "--feature-sets", "a,b", "--slots", "2", "--json"]
    )
    result = json.loads(again.output)
    assert (result["action"], result["entity"]) == ("unchanged", "definitions:item")
    assert result["views"] == [
        *("a_item_embeddings", "a_item_embeddings_2", "b_item_embeddings", "b_item_embeddings_2")
    ]
