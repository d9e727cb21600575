"""The version record on a real server: moved in one step, never half."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from sda_features.errors import OnlineStoreError
from sda_features.serving.pointer import (
    _CHANGE,
    FORMAT,
    Pointer,
    StoredVersion,
    audit_key,
    move_pointer,
    pointer_key,
    read_audit,
    read_pointer,
)

KEY = pointer_key("pointer", "sda")


def stored(version: str, slot: int = 1) -> StoredVersion:
    return StoredVersion(version, slot, items=3, dim=8, store_dtype="float32", written="2026-01-01T00:00:00Z")


@pytest.fixture(autouse=True)
def empty(server):
    server.delete(KEY, audit_key(KEY))


def test_without_a_record_nothing_is_live(server):
    assert read_pointer(server, KEY) == Pointer()
    assert Pointer().slot_of() is None


def test_a_move_is_read_back(server):
    moved = move_pointer(server, KEY, lambda p: p.with_version(stored("v1")).promoted("v1"))
    assert read_pointer(server, KEY) == moved == Pointer("v1", None, {"v1": stored("v1")})
    moved = move_pointer(server, KEY, lambda p: p.with_version(stored("v2", 2)).promoted("v2"))
    assert (moved.live, moved.previous) == ("v2", "v1")
    assert (moved.slot_of(), moved.slot_of("v1"), moved.slot_of("v3")) == (2, 1, None)


def test_a_slot_holds_one_version():
    first, second, third = stored("v1"), stored("v2", 2), stored("v3")
    pointer = Pointer("v2", "v1", {"v1": first, "v2": second})
    assert pointer.with_version(third) == Pointer("v2", None, {"v2": second, "v3": third})
    assert pointer.without_version("v1") == Pointer("v2", None, {"v2": second})
    assert pointer.promoted("v2") is pointer


def test_a_change_that_raises_changes_nothing(server):
    before = move_pointer(server, KEY, lambda p: p.with_version(stored("v1")).promoted("v1"))

    def refuse(pointer: Pointer) -> Pointer:
        raise OnlineStoreError("no")

    with pytest.raises(OnlineStoreError, match="no"):
        move_pointer(server, KEY, refuse)
    assert read_pointer(server, KEY) == before


def test_writers_do_not_lose_each_others_moves(server):
    def add(number: int) -> None:
        move_pointer(server, KEY, lambda p: p.with_version(stored(f"v{number}", number)))

    with ThreadPoolExecutor(8) as writers:
        list(writers.map(add, range(1, 9)))
    assert sorted(read_pointer(server, KEY).versions) == [f"v{number}" for number in range(1, 9)]


@pytest.mark.parametrize("record", [b"", b"{}", b"[1]", b'{"live":1,"previous":null,"versions":{"a":{}}}'])
def test_a_damaged_record_is_named(record):
    with pytest.raises(OnlineStoreError, match="version record in the online store is damaged"):
        Pointer.parse(record)


def test_fields_that_are_not_known_are_ignored_and_a_later_format_is_refused():
    content = json.loads(Pointer().with_version(stored("v1", 1)).promoted("v1").serialize())
    content["versions"]["v1"]["colour"] = content["mood"] = "green"
    assert Pointer.parse(json.dumps(content).encode()).slot_of() == 1
    content["format"] = FORMAT + 1
    with pytest.raises(OnlineStoreError, match=f"has format {FORMAT + 1}; .* reads up to {FORMAT}. Upgrade"):
        Pointer.parse(json.dumps(content).encode())
    del content["format"], content["writers"]  # as the first release wrote it
    assert Pointer.parse(json.dumps(content).encode()).live == "v1"


def test_a_change_whose_reply_was_lost_does_nothing_twice(server, monkeypatch):
    """The script runs, its reply does not arrive, and redis-py sends it again."""
    move_pointer(
        server, KEY, lambda p: p.with_version(stored("v1", 1)).with_version(stored("v2", 2)).promoted("v1")
    )
    real = server.eval

    def twice(script, *arguments):
        if script == _CHANGE:
            real(script, *arguments)
        return real(script, *arguments)

    monkeypatch.setattr(server, "eval", twice)
    assert move_pointer(server, KEY, lambda p: p.promoted("v2"), "promote").live == "v2"
    assert read_pointer(server, KEY).previous == "v1"
    assert [change["to"] for change in read_audit(server, KEY)] == ["v2"]
