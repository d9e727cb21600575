"""Versions of a feature set: which slot holds which, which one is live, and where a new one goes.

A slot is a feature view with a folder of parts (definitions.py). The record in Redis
(serving/pointer.py) names complete versions only, so a version is not in it before its first
materialisation has ended, and leaves it before its rows are deleted. Whatever is interrupted leaves
a slot that holds rows and is not in the record: *unrecorded*. Materialise that version again to
complete it, or prune it (lifecycle.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.compute as pc
import redis

from sda_features.errors import FeatureStoreError, OnlineStoreError
from sda_features.feature_store.lock import writing
from sda_features.feature_store.online_rows import missing_online, online_server
from sda_features.feature_store.parts import stored_dim, stored_rows
from sda_features.feature_store.repo import FeatureSet, open_slots
from sda_features.serving.layout import VERSION
from sda_features.serving.pointer import Pointer, StoredVersion, move_pointer, pointer_key, read_pointer

Held = Mapping[int, Collection[str]]


@dataclass(frozen=True)
class Versions:
    """A feature set with a version record, and the server that keeps it.

    Attributes:
        name: name of the feature set.
        slots: its slots; slot k is `slots[k - 1]`.
        server: the online store.
        key: key of the record.
    """

    name: str
    slots: Sequence[FeatureSet]
    server: redis.Redis
    key: bytes

    def record(self) -> Pointer:
        """The record as it is now."""
        return read_pointer(self.server, self.key)

    def held(self) -> dict[int, tuple[str, ...]]:
        """Slot -> versions of its newest offline rows, sorted; none for an empty slot."""
        return {opened.slot: held_versions(opened) for opened in self.slots}


@contextlib.contextmanager
def open_versions(repo_path: Path | str, feature_set: str) -> Iterator[Versions]:
    """The slots and the record of a feature set; the connection is closed after the block.

    Raises:
        FeatureStoreError: it has one slot, or see `open_feature_set`.
        OnlineStoreError: the online store is not a Redis server, or cannot be reached.
    """
    slots = open_slots(repo_path, feature_set)
    with open_record(slots) as versions:
        if versions is None and len(slots) == 1:
            raise FeatureStoreError(
                f"{slots[0].view.name} is the only slot of feature set {feature_set!r}: it holds one version, which "
                "is live, and a new one replaces it item by item. Add a slot with `sda-features init --slots 2` "
                "and `feast apply`."
            )
        if versions is None:
            raise OnlineStoreError(
                f"Versions are kept in Redis, and the online store of {slots[0].config.path} is "
                f"{slots[0].config.online_type}: there, slot 1 is served and written over. Set online_store to "
                "{type: redis, connection_string: 'localhost:6379'} and run `feast apply`."
            )
        yield versions


@contextlib.contextmanager
def open_record(slots: Sequence[FeatureSet]) -> Iterator[Versions | None]:
    """As `open_versions`, for slots that are open; None if they have no record: one slot, no Redis, or no folder."""
    with online_server(slots[0]) as server:
        if server is None or len(slots) == 1 or not slots[0].is_local:
            yield None
        else:
            name = slots[0].name
            yield Versions(name, slots, server, pointer_key(slots[0].config.project, name))


def choose_slot(record: Pointer, version: str, held: Held) -> int:
    """The slot to write a version to: the one that holds it, else an empty one.

    Args:
        record: the version record.
        version: adapter version.
        held: slot -> versions of its offline rows, for every slot.

    Raises:
        FeatureStoreError: neither exists.
    """
    if slot := record.slot_of(version):
        return slot
    taken = {stored.slot: stored.version for stored in record.versions.values()}
    free = [slot for slot in sorted(held) if slot not in taken]
    for contents in ({version}, set()):
        if fitting := [slot for slot in free if set(held[slot]) == contents]:
            return fitting[0]
    contents_of = ", ".join(
        f"slot {slot} holds {taken.get(slot) or ' and '.join(held[slot]) + ' (incomplete)'}"
        + (" (live)" if taken.get(slot) and taken[slot] == record.live else "")
        for slot in sorted(held)
    )
    raise FeatureStoreError(
        f"There is no free slot for version {version}: {contents_of}. Remove a version that is no longer needed with "
        "`sda-features prune VERSION`, or add a slot with `sda-features init --slots` and `feast apply`."
    )


@contextlib.contextmanager
def slot_for(slots: Sequence[FeatureSet], versions: Versions | None, version: str) -> Iterator[FeatureSet]:
    """The slot to write a version to, locked for this process while the block runs.

    Without a record it is slot 1. Rows that were served before there was a record are recorded
    first, so that they stay live.

    Args:
        slots: the slots of the feature set.
        versions: their record, see `open_record`.
        version: adapter version.

    Raises:
        FeatureStoreError: no slot is free, or another run is writing there.
    """
    if versions is None:
        with writing(slots[0].folder) if slots[0].is_local else contextlib.nullcontext():
            yield slots[0]
        return
    _adopt(versions, version)
    chosen = choose_slot(versions.record(), version, versions.held())
    with writing(slots[chosen - 1].folder):
        if choose_slot(versions.record(), version, versions.held()) != chosen:
            raise FeatureStoreError(f"Another run has just taken slot {chosen}. Run again.")
        yield slots[chosen - 1]


def record_version(versions: Versions, opened: FeatureSet, version: str, *, promote: bool) -> Pointer:
    """Enter a version that is complete in its slot, offline and online, into the record.

    The first version of a feature set becomes live, a later one only with `promote`.
    """
    stored = _stored_version(opened, version)

    def change(record: Pointer) -> Pointer:
        entered = record.with_version(stored)
        return entered.promoted(version) if promote or entered.live is None else entered

    return move_pointer(versions.server, versions.key, change)


def match_version(name: str, known: Collection[str], feature_set: str) -> str:
    """The one version of `known` that is `name` or begins with it.

    Raises:
        FeatureStoreError: there is none, or several.
    """
    matches = [version for version in known if version.startswith(name)] if name else []
    if name in matches:
        return name
    if len(matches) != 1:
        raise FeatureStoreError(
            f"Expected one version of feature set {feature_set!r} that begins with {name!r}, found "
            f"{len(matches)}; stored: {', '.join(sorted(known)) or 'none'}."
        )
    return matches[0]


def open_version(repo_path: Path | str, feature_set: str, version: str | None = None) -> FeatureSet:
    """The slot whose offline rows are of a version, by default the live one.

    Redis is asked only if the folders leave a choice, so that a trainer needs none as a rule.

    Raises:
        FeatureStoreError: no slot holds that version, or see `open_feature_set`.
        OnlineStoreError: the record is needed and cannot be read.
    """
    slots = open_slots(repo_path, feature_set)
    held = {opened.slot: held_versions(opened) for opened in slots}
    filled = [opened for opened in slots if held[opened.slot]]
    if version is not None:
        name = match_version(version, [name for names in held.values() for name in names], feature_set)
        return next(opened for opened in slots if name in held[opened.slot])
    if len(filled) == 1:
        return filled[0]
    with open_record(slots) as versions:
        slot = versions.record().slot_of() if versions else None
    return slots[(slot or 1) - 1]


def held_versions(opened: FeatureSet) -> tuple[str, ...]:
    """Versions of the newest offline rows of a slot, sorted; none if its rows are not in a local folder."""
    if not opened.is_local:
        return ()
    rows = stored_rows(opened.folder)
    return tuple(sorted(pc.unique(rows[VERSION]).to_pylist()))


def _adopt(versions: Versions, version: str) -> None:
    """Record what slot 1 holds as live if there is no record and all of it is online, as one version."""
    first = versions.slots[0]
    held = held_versions(first)
    if len(held) != 1 or held[0] == version or versions.record() != Pointer():
        return
    if missing_online(versions.server, first, stored_rows(first.folder)):
        return
    stored = _stored_version(first, held[0])
    move_pointer(
        versions.server,
        versions.key,
        lambda record: record if record != Pointer() else record.with_version(stored).promoted(held[0]),
    )


def _stored_version(opened: FeatureSet, version: str) -> StoredVersion:
    return StoredVersion(
        version,
        opened.slot,
        items=len(stored_rows(opened.folder)),
        dim=stored_dim(opened.folder) or 0,
        store_dtype=opened.store_dtype,
        written=datetime.now(UTC).isoformat(timespec="microseconds"),  # readers' caches go by it
    )
