"""What is done to versions once they are stored: list, promote, roll back, prune."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from sda_features.errors import FeatureStoreError
from sda_features.feature_store.online_rows import delete_online, sweep_online
from sda_features.feature_store.versions import Versions, held_versions, match_version
from sda_features.offline.compact import clear
from sda_features.offline.empty_slot import keep_readable
from sda_features.offline.lock import writing
from sda_features.offline.parts import stored_dim, stored_rows
from sda_features.offline.schema import ITEM_ID
from sda_features.offline.table import sweep
from sda_features.results import Result, text_table
from sda_features.serving.pointer import Pointer


@dataclass(frozen=True)
class VersionState:
    """One version of a feature set.

    Attributes:
        version: adapter version; several, joined by "+", in a slot that was written over before
            versions had slots.
        slot: number of its slot.
        state: live: readers get it; previous: `rollback` returns to it; unrecorded: incomplete, or
            from before there was a record.
        items: items with a vector.
        dim: dimension of the vectors; 0 if all are null.
        store_dtype: how numbers are stored; None if unrecorded.
        written: ISO time at which its last materialisation ended; None if unrecorded.
    """

    version: str
    slot: int
    state: Literal["live", "previous", "stored", "unrecorded"]
    items: int
    dim: int
    store_dtype: str | None
    written: str | None


@dataclass(frozen=True)
class VersionList(Result):
    """The versions of a feature set, by slot."""

    feature_set: str
    versions: list[VersionState]

    def __str__(self) -> str:
        if not self.versions:
            return f"No version of {self.feature_set} is stored. Write one with `sda-features materialize`."
        rows = [
            [state.version, str(state.slot), state.state, f"{state.items:,}", str(state.dim), state.written]
            for state in self.versions
        ]
        aligned = ["left", "right", "left", "right", "right", "left"]
        return text_table(rows, ["version", "slot", "state", "items", "dimension", "written"], aligned)


@dataclass(frozen=True)
class Changes(Result):
    """The audit list of a record, newest first: at, who, action, from, to."""

    feature_set: str
    changes: list[dict[str, Any]]

    def __str__(self) -> str:
        lines = [f"{c['at']}  {c['who']}  {c['action']}  live {c['from']} -> {c['to']}" for c in self.changes]
        return "\n".join(lines) or f"No change of {self.feature_set} is recorded."


@dataclass(frozen=True)
class Pruned(Result):
    """What `prune` deleted."""

    feature_set: str
    deleted: list[VersionState]

    def as_dict(self) -> dict[str, Any]:
        """See `Result`; of a version its name."""
        return {"feature_set": self.feature_set, "deleted": [state.version for state in self.deleted]}

    def __str__(self) -> str:
        lines = [f"deleted {s.version} from slot {s.slot}, {s.items:,} items" for s in self.deleted]
        nothing = f"Nothing to delete: {self.feature_set} has no version besides what is served or kept."
        return "\n".join(lines) or nothing


def list_versions(versions: Versions) -> list[VersionState]:
    """What every slot that is not empty holds, in the order of the slots."""
    record = versions.record()
    states: dict[str | None, Literal["live", "previous"]] = {record.previous: "previous", record.live: "live"}
    listed = []
    for opened in versions.slots:
        held, writer = held_versions(opened), record.writers.get(opened.slot)
        stored = record.in_slot(opened.slot)
        if stored:
            listed.append(VersionState(state=states.get(stored.version, "stored"), **vars(stored)))
        elif held or writer:
            names_held = held or (writer.version,) if writer else held
            items, dim = len(stored_rows(opened.folder)), stored_dim(opened.folder) or 0
            listed.append(
                VersionState("+".join(names_held), opened.slot, "unrecorded", items, dim, None, None)
            )
    return listed


def promote(versions: Versions, version: str) -> Pointer:
    """Make a version live, in one step; `version` may be an unambiguous beginning of it.

    Raises:
        FeatureStoreError: no such complete version, or several begin like that.
    """
    goal = match_version(version, list(versions.record().versions), versions.name)
    return _serve(versions, goal, "promote")


def rollback(versions: Versions) -> Pointer:
    """Make the version live that was live before; a second call returns.

    Which one that is, is decided before the record is changed: a change that is tried again, because
    its reply was lost, does nothing twice.

    Raises:
        FeatureStoreError: none was, or it has been pruned.
    """
    record = versions.record()
    if record.previous is None:
        others = [version for version in record.versions if version != record.live]
        raise FeatureStoreError(
            f"There is nothing to roll back to: no version of feature set {versions.name!r} was live before "
            f"{record.live or 'now'}, or it has been pruned. Stored besides: {', '.join(others) or 'none'}."
        )
    return _serve(versions, record.previous, "rollback")


def _serve(versions: Versions, goal: str, action: str) -> Pointer:
    def change(record: Pointer) -> Pointer:
        if goal not in record.versions:
            raise FeatureStoreError(f"Version {goal} of feature set {versions.name!r} has just been pruned.")
        return record.promoted(goal)

    return versions.move(change, action)


def prune(
    versions: Versions, names: Collection[str] = (), *, keep: Collection[str] = ()
) -> list[VersionState]:
    """Delete versions, online by exact key and field, and offline: those named, or all that are not live.

    A version leaves the record first, then its rows go; a run that was interrupted is completed by
    the next. Without a live version, slot 1 is served, and goes only if it is named.

    Args:
        names: versions to delete, or unambiguous beginnings of them.
        keep: versions to keep when none is named.

    Returns:
        What was deleted.

    Raises:
        FeatureStoreError: a name is unknown, ambiguous or live, or a run is writing to its slot.
    """
    listed = {state.version: state for state in list_versions(versions)}
    live = versions.record().live
    chosen = {match_version(name, list(listed), versions.name) for name in names}
    if not names:
        kept = {match_version(name, list(listed), versions.name) for name in keep}
        served = {live} if live else {state.version for state in listed.values() if state.slot == 1}
        chosen = set(listed) - kept - served
    for version in chosen:
        _empty_slot(versions, listed[version])
    return [state for state in listed.values() if state.version in chosen]


def _empty_slot(versions: Versions, state: VersionState) -> None:
    """Take a version out of the record, then delete its rows online, then offline."""
    opened = versions.slots[state.slot - 1]

    def forget(record: Pointer) -> Pointer:
        if record.live == state.version:
            raise FeatureStoreError(
                f"Version {state.version} is live. Promote another version before pruning it; stored: "
                f"{', '.join(sorted(record.versions))}."
            )
        return record.without_version(state.version)

    def choose(record: Pointer, now: float) -> int:
        forget(record)
        return state.slot

    with versions.lease(state.version, choose) as lease, writing(opened.folder):
        versions.move(forget, f"prune {state.version}")
        rows = stored_rows(opened.folder)
        deleted = delete_online(opened, rows[ITEM_ID].to_pylist())
        if state.state == "unrecorded" or deleted < state.items:
            sweep_online(opened, rows.slice(0, 0))  # rows that another machine wrote
        clear(opened.folder)
        sweep(opened.folder)
        keep_readable(opened.folder, opened.id_type, opened.store_dtype)
        lease.began_to_write = False
        versions.move(
            lambda record: record.without_writer(state.slot) if lease.expect(record) else record, ""
        )
