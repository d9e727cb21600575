"""Which version a read returns while versions come and go; on a real server, step by step."""

import itertools
import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from sda_features.errors import FeatureMismatchError, OnlineStoreError
from sda_features.online.writer import OnlineView, delete_view_keys
from sda_features.serving import EmbeddingClient, layout
from sda_features.serving.pointer import Pointer, Writer, move_pointer, pointer_key
from sda_features.serving.reading import ATTEMPTS, Reader
from sda_features.serving.wire import fetch_fields
from tests.serving.stored import put, record

IDS = ["a", "b", "?"]


@pytest.fixture
def fill(server, project):
    """Items a and b of a version in a slot, every number of a vector equal to `value`."""

    def fill(version, slot, value):
        for item_id in "ab":
            put(server, project, item_id, [value] * 3, [value] * 3, version, slot=slot)

    return fill


@pytest.fixture
def promote(server, project, fill):
    """Make v1 or v2 live; v1 is in slot 1, v2 in slot 2."""
    fill("v1", 1, 1)
    fill("v2", 2, 2)
    return lambda version: record(server, project, version, {"v1": 1, "v2": 2})


@pytest.fixture
def empty(server, project):
    """Delete the fields of a slot, as pruning does."""

    def empty(slot):
        view = OnlineView(project, layout.view_name("sda", slot), layout.FEATURES)
        delete_view_keys(server, view, view.keys("ab"))

    return empty


def answer(server, reader, between=lambda step: None):
    """Run a reader, with something done before each of its fetches."""
    reading, reply = reader.read(IDS), None
    try:
        for step in itertools.count():
            ask = reading.send(reply)
            between(step)
            reply = fetch_fields(server, ask.keys, ask.fields, record_key=ask.record_key)
    except StopIteration as end:
        return end.value


def test_the_live_version_and_the_one_asked_for(promote, client):
    promote("v1")
    assert client.get(IDS).text[:, 0].tolist() == [1, 1, 0]
    found = client.get(IDS, "v2")
    assert found.image[:, 0].tolist() == [2, 2, 0]
    assert found.versions == ("v2", "v2", None)
    promote("v2")
    assert client.get(IDS).versions == ("v2", "v2", None)
    assert client.get(IDS, "v1").text[:, 0].tolist() == [1, 1, 0]
    with pytest.raises(FeatureMismatchError, match=r"'v3' of feature set 'sda'.* holds v1, v2"):
        client.get(IDS, "v3")


def test_nothing_live(server, project, fill, client):
    fill("v1", 1, 1)
    assert client.get(IDS).versions == ("v1", "v1", None)  # no record: whatever slot 1 holds
    record(server, project, None, {"v1": 1})
    refusal = r"No version .* is live; the online store holds v1. Promote"
    with pytest.raises(FeatureMismatchError, match=refusal):
        client.get(IDS)
    assert client.get(IDS, "v1").versions == ("v1", "v1", None)


def test_the_dimension_is_that_of_the_record(server, project, fill, client):
    record(server, project, "v1", {"v1": 1})
    assert client.get(IDS).text.shape == (3, 3)  # nothing is stored, and the width is known
    fill("v1", 1, 1)
    record(server, project, "v1", {"v1": 1}, dim=4)
    with pytest.raises(FeatureMismatchError, match="dimension 3, expected 4"):
        client.get(IDS)


def test_a_damaged_record(server, project, client):
    server.set(pointer_key(project, "sda"), b"{")
    with pytest.raises(OnlineStoreError, match="version record in the online store is damaged"):
        client.get(IDS)


def test_promoted_while_reading(server, project, promote):
    promote("v1")

    def move(step):
        if step == 1:  # the record is known, the vectors are about to be read
            promote("v2")

    assert answer(server, Reader(project=project), move).versions == ("v2", "v2", None)


def test_the_slot_is_emptied_and_filled_again_while_reading(server, project, promote, empty):
    """The old record names slot 1; meanwhile v2 is promoted, v1 pruned, and v3 half written there."""
    promote("v1")
    reader = Reader(project=project)
    answer(server, reader)

    def move(step):
        if step == 0:
            record(server, project, "v2", {"v2": 2})
            empty(1)

    found = answer(server, reader, move)
    assert found.text[:, 0].tolist() == [2, 2, 0]  # not "unknown", which slot 1 would have said
    assert found.versions == ("v2", "v2", None)


@pytest.mark.parametrize("number", [[3] * 3, [3] * 5])  # of the same dimension and of another
def test_a_row_of_another_version_is_one_item_not_found(server, project, fill, number):
    fill("v1", 1, 1)
    put(server, project, "b", number, None, "v3")
    record(server, project, "v1", {"v1": 1})
    reader = Reader(project=project)
    found = answer(server, reader)
    assert found.versions == ("v1", None, None)
    assert found.text_found.tolist() == found.image_found.tolist() == [True, False, False]
    assert found.text[1:].any() == np.False_
    fill("v1", 1, 1)
    assert answer(server, reader).versions == ("v1", "v1", None)


def test_all_rows_of_another_version(server, project, fill):
    fill("v3", 1, 1)
    record(server, project, "v1", {"v1": 1})
    assert not answer(server, Reader(project=project)).text_found.any()


def test_a_first_version_that_is_half_written(server, project, fill, client):
    fill("v1", 1, 1)
    begun = Pointer().with_writer(Writer("v1", 1, 7, "me", 0))
    move_pointer(server, pointer_key(project, "sda"), lambda _: begun)
    refusal = r"No version .* is live; the online store holds v1 \(incomplete\)"
    with pytest.raises(FeatureMismatchError, match=refusal):
        client.get(IDS)


def test_a_record_that_is_lost(server, project, promote, client, caplog, url):
    """Who knew it goes on by it; who does not refuses."""
    promote("v2")
    assert client.get(IDS).versions == ("v2", "v2", None)
    server.delete(pointer_key(project, "sda"))
    for _ in range(2):
        assert client.get(IDS).versions == ("v2", "v2", None)
    assert caplog.text.count("versions --repair") == 1
    with pytest.raises(OnlineStoreError, match="'sda' is gone .* several slots.*versions --repair"):
        EmbeddingClient(url, project=project).get(IDS)


def test_age_counts_from_when_a_row_was_last_seen_unchanged(server, project):
    now = datetime.now(UTC)
    put(server, project, "a", [1] * 3, [1] * 3, at=int((now - timedelta(days=90)).timestamp()))
    reader = Reader(project=project, max_age=timedelta(days=1))
    record(server, project, "v1", {"v1": 1}, written=now.isoformat())
    assert answer(server, reader).text_found.tolist() == [True, False, False]
    record(server, project, "v1", {"v1": 1}, written=(now - timedelta(days=2)).isoformat())
    assert not answer(server, reader).text_found.any()


def test_a_record_that_never_rests(server, project, promote):
    def flip(step):
        promote(f"v{1 + step % 2}")

    with pytest.raises(FeatureMismatchError, match=f"changed during each of {ATTEMPTS} reads"):
        answer(server, Reader(project=project), flip)


def test_a_record_that_changes_elsewhere_costs_no_second_read(server, project, fill):
    fill("v1", 1, 1)
    record(server, project, "v1", {"v1": 1})
    reader, asked = Reader(project=project), []
    answer(server, reader)

    def add(step):
        asked.append(step)
        record(server, project, "v1", {"v1": 1, "v2": 2})

    assert answer(server, reader, add).versions == ("v1", "v1", None)
    assert asked == [0]


def test_several_versions_without_a_record(server, project, fill, client):
    fill("v1", 1, 1)
    put(server, project, "b", [2] * 3, None, "v2")
    assert client.get([*IDS, "a"]).versions == ("v1", None, None, "v1")  # what most of them have
    assert client.get(["b", "?", "b"]).versions == ("v2", None, "v2")
    put(server, project, "b", [2] * 3, None, None)
    assert client.get(IDS).versions == ("v1", None, None)
    assert client.get(IDS, "v1").versions == ("v1", None, None)
    with pytest.raises(FeatureMismatchError, match="'b' has vectors of adapter version None, expected 'v1'"):
        client.get(["b"], "v1")


def test_readers_while_versions_change_places(server, project, url, fill, empty):
    """Each new version goes into the slot that is not live; what readers get is of one version, whole."""
    fill("v1", 1, 1)
    record(server, project, "v1", {"v1": 1})
    wrong, seen, done = [], set(), threading.Event()

    def read():
        with EmbeddingClient(url, project=project) as client:
            while not done.is_set():
                found = client.get(["a", "b"])
                version = found.versions[0]
                if set(found.versions) != {version} or not (found.text == float(version[1:])).all():
                    wrong.append(found)
                seen.add(version)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    live, slot = "v1", 1
    number = 1
    while number < 60 or len(seen) <= 3:  # a loaded machine gives the readers little time
        number += 1
        version, other = f"v{number}", 3 - slot
        record(server, project, live, {live: slot})
        empty(other)
        fill(version, other, number)
        record(server, project, version, {live: slot, version: other})
        live, slot = version, other
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong


def test_event_times_and_age(server, project, client, url):
    now = datetime.now(UTC)
    hour = timedelta(hours=1)
    for item_id, time in {"old": now - 3 * hour, "new": now - hour}.items():
        put(server, project, item_id, [1] * 3, [1] * 3, at=int(time.timestamp()))
    found = client.get(["old", "?", "new"])
    assert found.event_times.dtype == np.dtype("datetime64[us]")
    assert np.isnat(found.event_times).tolist() == [False, True, False]
    assert found.event_times[0] == np.datetime64(int((now - 3 * hour).timestamp()), "s")
    with EmbeddingClient(url, project=project, max_age=2 * hour) as strict:
        fresh = strict.get(["old", "?", "new"])
    assert fresh.text_found.tolist() == fresh.image_found.tolist() == [False, False, True]
    assert fresh.text.tolist() == [[0] * 3, [0] * 3, [1] * 3]
    assert fresh.event_times[0] == found.event_times[0]
