"""Versions of a feature set: which slot holds which, which one is live, and where a new one goes.

A slot is a feature view with a folder of parts (definitions.py). The record in Redis
(serving/pointer.py) names complete versions, so a version is not among them before its first
materialisation has ended, and leaves them before its rows are deleted; and it names the writer of
each slot (lease.py). Whatever is interrupted leaves a slot that holds rows of a version which is not
among them: *unrecorded*. Materialise that version again to complete it, or prune it (lifecycle.py).
A copy of the record lies beside the offline rows (record_copy.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.compute as pc
import redis

from sda_features.errors import FeatureStoreError, OnlineStoreError
from sda_features.feature_store.online_rows import missing_online, online_server
from sda_features.feature_store.record_copy import write_copy
from sda_features.feature_store.repo import FeatureSet, open_slots
from sda_features.offline.lock import writing
from sda_features.offline.parts import stored_dim, stored_rows
from sda_features.online.lease import Choose, Lease, current_lease, leased
from sda_features.serving.connection import RedisAddress
from sda_features.serving.layout import VERSION
from sda_features.serving.pointer import (
    Pointer,
    StoredVersion,
    audit_key,
    move_pointer,
    pointer_key,
    read_pointer,
)


@dataclass(frozen=True)
class Versions:
    """A feature set with a version record, and the server that keeps it."""

    name: str
    slots: Sequence[FeatureSet]  # slot k is `slots[k - 1]`
    server: redis.Redis
    address: RedisAddress
    key: bytes  # of the record

    def record(self) -> Pointer:
        """The record as it is now.

        Raises:
            FeatureStoreError: it is lost, or names a slot that the repo lacks.
        """
        record = read_pointer(self.server, self.key)
        if record == Pointer():
            filled = [slot for slot, names in self.held().items() if names]
            # A first run that failed leaves a record that names nothing, beside the list of its changes.
            lost = self.server.exists(audit_key(self.key)) and not self.server.exists(self.key)
            if len(filled) > 1 or lost:
                raise FeatureStoreError(
                    f"The version record of feature set {self.name!r} is gone from Redis at {self.address}: it had "
                    f"changes, or there are rows in {len(filled)} slots. Nothing says which version is live. Restore "
                    "it with `sda-features versions --repair`, and let Redis keep it (docs/runbook.md)."
                )
        last = max([*(stored.slot for stored in record.versions.values()), *record.writers], default=0)
        if last > len(self.slots):
            raise FeatureStoreError(
                f"The version record of feature set {self.name!r} names slot {last}, and the repo has "
                f"{len(self.slots)}. Add it again with `sda-features init --slots {last}` and `feast apply`, then "
                "prune what it holds."
            )
        return record

    def move(self, change: Callable[[Pointer], Pointer], action: str) -> Pointer:
        """Change the record, see `move_pointer`, and keep a copy of it beside the offline rows."""
        moved = move_pointer(self.server, self.key, change, action)
        write_copy(self.slots[0], moved)
        return moved

    def lease(self, version: str, choose: Choose) -> AbstractContextManager[Lease]:
        """Hold a slot, see `lease.leased`."""
        return leased(self.server, self.key, self.address, version, choose)

    def held(self) -> dict[int, tuple[str, ...]]:
        """Slot -> versions of its newest offline rows, sorted; none for an empty slot."""
        return {opened.slot: held_versions(opened) for opened in self.slots}


@contextlib.contextmanager
def open_versions(repo_path: Path | str, feature_set: str) -> Iterator[Versions]:
    """The slots and the record of a feature set; the connection is closed after the block.

    Raises:
        FeatureStoreError: it has one slot, or see `open_feature_set`.
        OnlineStoreError: the online store is not Redis, or cannot be reached.
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
        if server is None or len(slots) == 1 or not slots[0].has_folder:
            yield None
        else:
            name, config = slots[0].name, slots[0].config
            yield Versions(name, slots, server, config.redis_address(), pointer_key(config.project, name))


def choose_slot(record: Pointer, version: str, held: Mapping[int, Collection[str]]) -> int:
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
    filling = {slot: writer.version for slot, writer in record.writers.items()}
    free = [slot for slot in sorted(held) if slot not in taken]
    for slot in free:
        if filling.get(slot) == version:
            return slot
    for contents in ({version}, set()):
        if fitting := [slot for slot in free if slot not in filling and set(held[slot]) == contents]:
            return fitting[0]
    contents_of = ", ".join(
        f"slot {slot} holds {taken.get(slot) or (filling.get(slot) or ' and '.join(held[slot])) + ' (incomplete)'}"
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
        with writing(slots[0].folder) if slots[0].has_folder else contextlib.nullcontext():
            yield slots[0]
        return
    adopt(versions)
    held = versions.held()
    with (
        versions.lease(version, lambda record, now: choose_slot(record, version, held)) as lease,
        writing(slots[lease.writer.slot - 1].folder),
    ):
        yield slots[lease.writer.slot - 1]


def record_version(versions: Versions, opened: FeatureSet, version: str, *, promote: bool) -> Pointer:
    """Enter a version that is complete in its slot, offline and online, into the record.

    The first version of a feature set becomes live, a later one only with `promote`.
    """
    stored, lease = stored_version(opened, version), current_lease()

    def change(record: Pointer) -> Pointer:
        entered = record.with_version(stored)
        if lease:
            lease.expect(record)
            entered = entered.without_writer(opened.slot)
        return entered.promoted(version) if promote or entered.live is None else entered

    return versions.move(change, f"complete {version} in slot {opened.slot}")


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

    Redis is asked if the folders leave a choice, and otherwise if it answers: a trainer needs none.

    Raises:
        FeatureStoreError: no slot holds that version, the record says that it is not complete, or
            see `open_feature_set`.
        OnlineStoreError: the record is needed and cannot be read.
    """
    slots = open_slots(repo_path, feature_set)
    held = {opened.slot: held_versions(opened) for opened in slots}
    filled = [opened for opened in slots if held[opened.slot]]
    chosen = filled[0] if len(filled) == 1 else None
    if version is not None:
        name = match_version(version, [name for names in held.values() for name in names], feature_set)
        chosen = next(opened for opened in slots if name in held[opened.slot])
    try:
        with open_record(slots) as versions:
            record = versions.record() if versions else Pointer()
            chosen = chosen or slots[(record.slot_of() or 1) - 1]
            if versions:
                _check_complete(chosen, held[chosen.slot], record)
    except OnlineStoreError:
        if chosen is None:
            raise
    return chosen


def _check_complete(opened: FeatureSet, held: Collection[str], record: Pointer) -> None:
    """Refuse the rows of a run that has not ended, and rows that are fewer than the record says."""
    stored, writer = record.in_slot(opened.slot), record.writers.get(opened.slot)
    if stored is None and writer is not None and writer.version in held:
        raise FeatureStoreError(
            f"Version {writer.version} in slot {opened.slot} is not complete: {writer.owner} "
            f"{'has left it' if writer.expires == 0 else 'is writing it, or was interrupted'}. Materialize it again "
            "before training on it."
        )
    if stored is not None and stored.version in held and writer is None:
        count = len(stored_rows(opened.folder))
        if count != stored.items:
            raise FeatureStoreError(
                f"Expected {stored.items:,} items of version {stored.version} offline, as the version record says, "
                f"found {count:,} in slot {opened.slot}. Materialize it again before training on it."
            )


def held_versions(opened: FeatureSet) -> tuple[str, ...]:
    """Versions of the newest offline rows of a slot, sorted; none if its rows are not in a local folder."""
    if not opened.has_folder:
        return ()
    rows = stored_rows(opened.folder)
    return tuple(sorted(pc.unique(rows[VERSION]).to_pylist()))


def adopt(versions: Versions) -> None:
    """Record what slot 1 holds as live if there is no record and all of it is online, as one version.

    Raises:
        FeatureStoreError: the record is lost, or names a slot that the repo lacks.
    """
    if versions.record() != Pointer():
        return
    first = versions.slots[0]
    held = held_versions(first)
    if len(held) != 1 or missing_online(versions.server, first, stored_rows(first.folder))[0]:
        return
    stored = stored_version(first, held[0])
    versions.move(
        lambda record: record if record != Pointer() else record.with_version(stored).promoted(held[0]),
        f"found {held[0]} in slot 1",
    )


def stored_version(opened: FeatureSet, version: str) -> StoredVersion:
    """What the record says of a version whose rows are complete in a slot."""
    return StoredVersion(
        version,
        opened.slot,
        items=len(stored_rows(opened.folder)),
        dim=stored_dim(opened.folder) or 0,
        store_dtype=opened.store_dtype,
        written=datetime.now(UTC).isoformat(timespec="microseconds"),  # readers' caches go by it
    )
