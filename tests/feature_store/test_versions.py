"""Two versions side by side on a real server: promoted under readers, pruned to the byte."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import product
from unittest.mock import patch

import pytest
import redis
from click.testing import CliRunner

from sda_features.cli.main import cli
from sda_features.errors import FeatureMismatchError, FeatureStoreError, OnlineStoreError
from sda_features.feature_store import lifecycle as lifecycle_module
from sda_features.feature_store.lifecycle import list_versions, promote, prune, rollback
from sda_features.feature_store.matrices import load_vectors
from sda_features.feature_store.online_rows import online_view
from sda_features.feature_store.repo import open_feature_set, open_slots
from sda_features.feature_store.to_online import materialize_view
from sda_features.feature_store.versions import (
    choose_slot,
    match_version,
    open_record,
    open_version,
    open_versions,
    record_version,
    slot_for,
)
from sda_features.offline.compact import clear
from sda_features.offline.parts import part_paths
from sda_features.serving import EmbeddingClient
from sda_features.serving.embedded import embedded_redis
from sda_features.serving.pointer import Pointer, StoredVersion, pointer_key
from tests import shop
from tests.feast_repo import NOON, Rows

A, B, C = "aaaa00000001", "abbb00000002", "cccc00000003"
IDS = [f"i{number:02}" for number in range(30)]
ROWS = {version: Rows.random(IDS, 8, seed=seed) for seed, version in enumerate((A, B, C))}


@pytest.fixture
def server():
    """A server of its own, so that a dump of it is the whole story."""
    with embedded_redis() as address:
        yield address


def store(repo, version, *, rows=None, promoted=False, hours=0):
    rows = rows or ROWS[version]
    return rows.store(repo, version, promote=promoted, time=NOON + timedelta(hours=hours))


def manage(repo, action, *arguments, **options):
    """What an action on the versions of a repo returns."""
    with open_versions(repo, "sda") as versions:
        return action(versions, *arguments, **options)


def states(repo):
    return {state.version: (state.slot, state.state) for state in manage(repo, list_versions)}


def pruned(repo, *names, **options):
    return [state.version for state in manage(repo, prune, names, **options)]


def dump(server):
    """Everything that a server holds: key -> its fields, or its value."""
    with redis.Redis(*server) as client:
        return {
            key: client.hgetall(key) if client.type(key) == b"hash" else client.get(key)
            for key in client.keys("*")
            if not key.endswith(b":audit")
        }


def stored(version, slot):
    return StoredVersion(version, slot, 30, 8, "float32", "2026-01-01T00:00:00+00:00")


@pytest.mark.parametrize(
    ("record", "held", "slot"),
    [
        (Pointer(), {1: (), 2: ()}, 1),
        (Pointer(), {1: (A,), 2: ()}, 1),  # goes on
        (Pointer(), {1: (B,), 2: ()}, 2),  # the other one is not complete, and may be served
        (Pointer(), {1: (B,), 2: (A,)}, 2),
        (Pointer(), {1: (A, B), 2: ()}, 2),
        (Pointer(A, None, {A: stored(A, 2)}), {1: (), 2: (A,)}, 2),
        (Pointer(A, None, {A: stored(A, 2)}), {1: (A,), 2: ()}, 2),  # the record rules
        (Pointer(B, None, {B: stored(B, 1)}), {1: (B,), 2: (), 3: ()}, 2),
        (Pointer(B, None, {B: stored(B, 1)}), {1: (A,), 2: ()}, 2),  # not over what is recorded
    ],
)
def test_a_version_goes_where_it_is_or_where_nothing_is(record, held, slot):
    assert choose_slot(record, A, held) == slot


def test_no_slot_is_free():
    record = Pointer(B, None, {B: stored(B, 1)})
    with pytest.raises(
        FeatureStoreError,
        match=rf"no free slot for version {A}: slot 1 holds {B} \(live\), slot 2 holds {C} \(incomplete\)\. .*prune",
    ):
        choose_slot(record, A, {1: (B,), 2: (C,)})


@pytest.mark.parametrize(("name", "found"), [(A, A), ("aa", A), ("abbb", B)])
def test_a_beginning_names_a_version(name, found):
    assert match_version(name, [A, B], "sda") == found
    assert match_version("a", ["a", "ab"], "sda") == "a"


@pytest.mark.parametrize("name", ["", "a", "x"])
def test_a_beginning_that_names_none_or_several(name):
    with pytest.raises(FeatureStoreError, match=rf"begins with '{name}', found [02]; stored: {A}, {B}"):
        match_version(name, [B, A], "sda")


def test_a_version_is_written_beside_the_live_one(make_repo):
    repo = make_repo(slots=2)
    with EmbeddingClient.from_repo(repo, "sda") as client:
        assert store(repo, A) == 1
        assert states(repo) == {A: (1, "live")}
        ROWS[A].assert_equal(client.get(IDS))
        assert store(repo, B) == 2
        assert states(repo) == {A: (1, "live"), B: (2, "stored")}
        ROWS[A].assert_equal(client.get(IDS))
        ROWS[B].assert_equal(client.get(IDS, version=B))
        manage(repo, promote, "ab")
        assert states(repo) == {A: (1, "previous"), B: (2, "live")}
        ROWS[B].assert_equal(client.get(IDS))
        with pytest.raises(FeatureStoreError, match=f"no free slot for version {C}"):
            store(repo, C)
        manage(repo, rollback)
        ROWS[A].assert_equal(client.get(IDS))
        manage(repo, rollback)
        assert pruned(repo) == [A]
        with pytest.raises(FeatureStoreError, match="nothing to roll back to.*Stored besides: none"):
            manage(repo, rollback)
        assert store(repo, C, promoted=True) == 1
        ROWS[C].assert_equal(client.get(IDS))
        with pytest.raises(FeatureMismatchError):
            client.get(IDS, version=A)


def test_trainers_read_the_live_version_or_the_one_they_name(make_repo):
    with embedded_redis() as server:
        repo = make_repo(slots=2, server=server)
        with pytest.raises(FeatureStoreError, match="no rows"):
            load_vectors(repo, "sda", IDS)
        store(repo, A)
        store(repo, B)
        ROWS[A].assert_equal(load_vectors(repo, "sda", IDS))
        manage(repo, promote, B)
        ROWS[B].assert_equal(load_vectors(repo, "sda", IDS))
        ROWS[A].assert_equal(load_vectors(repo, "sda", IDS, version="aa"))
        with pytest.raises(FeatureStoreError, match=f"begins with 'c', found 0; stored: {A}, {B}"):
            load_vectors(repo, "sda", IDS, version="c")
    # The server has ended: a version that is named, or the only one there, needs none.
    assert open_version(repo, "sda", B).slot == 2
    with pytest.raises(OnlineStoreError):
        open_version(repo, "sda")
    clear(open_feature_set(repo, "sda").folder)
    assert open_version(repo, "sda").slot == 2


def test_readers_see_one_version_or_the_other_while_they_are_promoted(make_repo):
    repo = make_repo(slots=2)
    store(repo, A)
    store(repo, B)
    stop = threading.Event()

    def read() -> set[str]:
        seen = set()
        with EmbeddingClient.from_repo(repo, "sda") as client:
            while not stop.is_set():
                found = client.get(IDS)
                (version,) = set(found.versions)
                ROWS[version].assert_equal(found)
                seen.add(version)
        return seen

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        try:
            with open_versions(repo, "sda") as versions:
                for turn in range(100):
                    promote(versions, (A, B)[turn % 2])
                    time.sleep(0.01)
        finally:
            stop.set()
    for reader in readers:
        assert reader.result() == {A, B}, "vacuous: a reader saw one version only"


def neighbours(make_repo, server):
    """Whatever may be hit by mistake: projects whose names end alike, and two slots of one item's hash."""
    repos = [
        make_repo(slots=2, server=server, project=project, name=project) for project in ("shop", "coffeeshop")
    ]
    for repo, version in product(repos, (A, B)):
        store(repo, version)
    return repos


def test_prune_touches_nothing_else(make_repo, server):
    repo, _ = neighbours(make_repo, server)
    before = dump(server)
    opened = open_feature_set(repo, "sda", 2)
    assert pruned(repo) == [B]
    view = online_view(opened)
    keys = {*view.keys(IDS)}
    fields = {view.time_field, *view.fields}
    record = pointer_key("shop", "sda")
    after = dump(server)
    assert before.keys() == after.keys()
    for key in before:
        if key in keys:
            assert fields <= before[key].keys()
            assert after[key] == {name: value for name, value in before[key].items() if name not in fields}
        elif key != record:
            assert after[key] == before[key]
    assert Pointer.parse(after[record]) == Pointer.parse(before[record]).without_version(B)
    assert part_paths(opened.folder) == []
    assert part_paths(open_feature_set(repo, "sda", 1).folder)
    assert states(repo) == {A: (1, "live")}


def test_the_last_view_of_a_hash_takes_the_hash_with_it(make_repo, server):
    repo = make_repo(slots=2, server=server)
    others = Rows.random(["x", "y"], 8)
    store(repo, A)
    store(repo, B, rows=others, promoted=True)
    pruned(repo)
    assert len(dump(server)) == 2 + 1  # x and y, and the record


@pytest.mark.parametrize("crash_at", ["delete_online", "clear", "sweep"])
def test_an_interrupted_prune_is_completed(make_repo, server, crash_at):
    """Stop before the online rows, between both, and before files that count no longer are gone."""
    repo, _ = neighbours(make_repo, server)
    extra = Rows.random(["z"], 8)
    store(repo, B, rows=extra, hours=1)
    crash = patch.object(lifecycle_module, crash_at, side_effect=ZeroDivisionError)
    with crash, pytest.raises(ZeroDivisionError):
        pruned(repo, B)
    assert states(repo) == {A: (1, "live"), B: (2, "unrecorded")}
    with EmbeddingClient.from_repo(repo, "sda") as client:
        ROWS[A].assert_equal(client.get(IDS))
        with pytest.raises(FeatureMismatchError):
            client.get(IDS, version=B)
    assert pruned(repo) == [B]
    view = online_view(open_feature_set(repo, "sda", 2))
    assert states(repo) == {A: (1, "live")}
    left = [
        key for key, value in dump(server).items() if isinstance(value, dict) and view.time_field in value
    ]
    assert [key for key in left if key in set(view.keys([*IDS, "z"]))] == []
    assert len(left) == len(IDS), "the other project's rows"


def test_a_pruned_version_can_be_written_again_after_a_crash(make_repo):
    """Its rows are half gone online and all there offline: materialising completes it."""
    repo = make_repo(slots=2)
    store(repo, A)
    store(repo, B)
    with open_versions(repo, "sda") as versions:
        crash = patch.object(lifecycle_module, "clear", side_effect=ZeroDivisionError)
        with crash, pytest.raises(ZeroDivisionError):
            prune(versions, [B])
        with slot_for(versions.slots, versions, B) as opened:
            assert opened.slot == 2
            materialize_view(repo, "sda", slot=2)
            record_version(versions, opened, B, promote=True)
    ROWS[B].assert_served(repo)


def test_what_prune_refuses_and_keeps(make_repo):
    repo = make_repo(slots=3)
    for version in (A, B, C):
        store(repo, version)
    with pytest.raises(FeatureStoreError, match=f"Version {A} is live. Promote another version"):
        pruned(repo, A)
    with pytest.raises(FeatureStoreError, match="begins with 'x', found 0"):
        pruned(repo, "x")
    refused = pytest.raises(FeatureStoreError, match="Another run is writing")
    with open_versions(repo, "sda") as versions, slot_for(versions.slots, versions, C), refused:
        prune(versions, [C])
    assert states(repo) == {A: (1, "live"), B: (2, "stored"), C: (3, "stored")}
    assert pruned(repo, keep=["ab"]) == [C]
    assert pruned(repo) == [B]
    assert pruned(repo) == []
    assert states(repo) == {A: (1, "live")}


def test_rows_from_before_the_record_stay_live(make_repo):
    repo = make_repo(slots=2)
    ROWS[A].write(repo / "data/sda", version=A)
    materialize_view(repo, "sda")
    assert states(repo) == {A: (1, "unrecorded")}
    assert pruned(repo) == []  # it is served
    assert store(repo, B) == 2
    assert states(repo) == {A: (1, "live"), B: (2, "stored")}
    ROWS[A].assert_served(repo)


def test_an_incomplete_first_version_is_not_taken_for_a_live_one(make_repo):
    repo = make_repo(slots=2)
    ROWS[A].write(repo / "data/sda", version=A)
    assert store(repo, B) == 2
    assert states(repo) == {A: (1, "unrecorded"), B: (2, "live")}
    with pytest.raises(FeatureStoreError, match="found 0; stored: abbb"):
        manage(repo, promote, A)
    assert pruned(repo) == [A]


def test_a_refresh_of_the_live_version_is_in_place(make_repo):
    repo = make_repo(slots=2)
    store(repo, A)
    newer = Rows.random(IDS[:3], 8, seed=9)
    assert store(repo, A, rows=newer, hours=1) == 1
    with EmbeddingClient.from_repo(repo, "sda") as client:
        newer.assert_equal(client.get(IDS[:3]))
        assert client.get(IDS).text[3:].tobytes() == ROWS[A].text[3:].tobytes()


def test_one_slot_and_other_stores_have_no_versions(make_repo):
    with pytest.raises(FeatureStoreError, match=r"only slot of feature set 'sda'.*init --slots 2"):
        states(make_repo(name="narrow"))
    sqlite = make_repo(name="sqlite", server=None, slots=2)
    with pytest.raises(
        OnlineStoreError, match="Versions are kept in Redis, and the online store of .* sqlite"
    ):
        states(sqlite)
    slots = open_slots(sqlite, "sda")
    with open_record(slots) as versions, slot_for(slots, versions, A) as opened:
        assert (versions, opened.slot) == (None, 1)


def test_the_commands(make_repo):
    repo = make_repo(slots=2)

    def run(*arguments):
        return shop.run(*arguments, "--repo", repo)

    assert "No version of sda is stored" in run("versions")
    store(repo, A)
    store(repo, B)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in run("versions").splitlines()]
    assert rows[0] == ["version", "slot", "state", "items", "dimension", "written"]
    assert [row[:5] for row in rows[2:]] == [[A, "1", "live", "30", "8"], [B, "2", "stored", "30", "8"]]
    assert f"| {B} |      2 | live " in run("promote", "ab")
    listed = json.loads(run("rollback", "--json"))["versions"]
    assert [(version["version"], version["state"]) for version in listed] == [(A, "live"), (B, "previous")]
    assert "Nothing to delete" in run("prune", "--keep", B)
    assert run("prune", "ab") == f"deleted {B} from slot 2, 30 items\n"
    assert json.loads(run("prune", "--json")) == {"feature_set": "sda", "deleted": []}
    assert states(repo) == {A: (1, "live")}


@pytest.mark.parametrize("audit", [False, True])
@pytest.mark.parametrize("copy", [True, False])
def test_a_lost_record_is_an_error_until_it_is_repaired(make_repo, server, audit, copy):
    repo = make_repo(slots=2, server=server)
    store(repo, A)
    store(repo, B, promoted=True)
    with redis.Redis(*server) as client:
        client.delete(*client.keys("sda-features*"))
        if audit:
            client.delete(*client.keys("*:audit"))
    if not copy:
        (open_feature_set(repo, "sda").folder / ".versions.json").unlink()
    for attempt in (lambda: states(repo), lambda: store(repo, C), lambda: load_vectors(repo, "sda", IDS)):
        with pytest.raises(FeatureStoreError, match="record of feature set 'sda' is gone .*--repair"):
            attempt()
    arguments = ["versions", "--repair", "--repo", str(repo)]
    if not copy:
        refused = CliRunner().invoke(cli, arguments)
        assert f"complete are {A}, {B}" in str(refused.exception)
        arguments += ["--live", "abbb"]
    shop.run(*arguments)
    assert states(repo) == {A: (1, "previous" if copy else "stored"), B: (2, "live")}
    ROWS[B].assert_served(repo)


def test_status_and_sweep(make_repo, server):
    repo = make_repo(slots=2, server=server)
    store(repo, A)

    def run(*arguments):
        done = CliRunner().invoke(cli, ["status", *arguments, "--repo", str(repo), "--json"])
        return done.exit_code, json.loads(done.stdout)

    code, found = run("--orphans")
    assert (code, found["live"], found["problems"]) == (0, A, [])
    assert [slot["orphans"] for slot in found["slots"]] == [0, 0]
    assert found["slots"][0]["offline"] == found["slots"][0]["recorded"] == len(IDS)
    assert found["last_change"]["action"] == f"complete {A} in slot 1"
    opened = open_feature_set(repo, "sda")
    keys = online_view(opened).keys([IDS[0], "unknown"])
    with redis.Redis(*server) as client:
        client.copy(keys[0], keys[1])
        client.delete(keys[0])
    code, found = run("--orphans", "--max-age", "0.000001")
    assert code == 3
    assert [problem.split(":")[0] for problem in found["problems"]] == [
        "slot 1",
        "slot 1",
        "the live version was brought up to date 0 s ago, above 0 s",
    ]
    code, found = run("--sweep")
    assert (found["swept"], found["slots"][0]["orphans"], found["slots"][0]["missing"]) == (1, 0, 1)


def test_every_change_is_listed(make_repo):
    repo = make_repo(slots=2)
    store(repo, A)
    store(repo, B)
    manage(repo, promote, B)
    manage(repo, rollback)
    pruned(repo)
    changes = json.loads(shop.run("versions", "--log", "--json", "--repo", repo))["changes"][::-1]
    actions = [(change["action"].split()[0], change["from"], change["to"]) for change in changes]
    assert actions == [
        ("write", None, None),
        ("complete", None, A),
        ("write", A, A),
        ("complete", A, A),
        ("promote", A, B),
        ("rollback", B, A),
        ("write", A, A),
        ("prune", A, A),
    ]
