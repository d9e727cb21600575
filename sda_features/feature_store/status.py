"""What a feature set has in both stores, against its record: for people and for monitors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sda_features.errors import FeatureStoreError
from sda_features.feature_store.capacity import Memory, memory_of
from sda_features.feature_store.online_rows import missing_online, orphans_online, sweep_online
from sda_features.feature_store.versions import Versions, held_versions
from sda_features.offline.parts import stored_rows
from sda_features.results import Result
from sda_features.serving.pointer import Pointer, read_audit, read_with_time


@dataclass(frozen=True)
class SlotStatus:
    """One slot.

    Attributes:
        slot: its number.
        version: the version that the record names; None: none that is complete.
        recorded: items by the record.
        offline: items in the offline store on this machine.
        missing: offline rows that are not online with their version and time.
        orphans: rows online that the offline store does not have; None: not counted.
        writer: who writes there, or began to.
        writing: whether that writer still holds its lease.
    """

    slot: int
    version: str | None
    recorded: int
    offline: int
    missing: int
    orphans: int | None
    writer: str | None
    writing: bool


@dataclass(frozen=True)
class Status(Result):
    """A feature set.

    Attributes:
        feature_set: its name.
        live: version that readers get.
        previous: version to which `rollback` returns.
        age: seconds since the last materialisation of the live version ended; None without one.
        slots: its slots.
        memory: of each Redis node, by its address.
        problems: what a monitor should report; empty if all is well.
        last_change: the newest entry of the audit list.
        swept: orphans that `sweep` deleted before.
    """

    feature_set: str
    live: str | None
    previous: str | None
    age: float | None
    slots: list[SlotStatus]
    memory: dict[str, Memory]
    problems: list[str]
    last_change: dict[str, Any] | None
    swept: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """See `Result`."""
        return {**asdict(self), "swept": self.swept or 0}

    @property
    def exit_status(self) -> int:
        """3 if there is a problem."""
        return self.CHECK_FAILED if self.problems else 0

    def __str__(self) -> str:
        age = "" if self.age is None else f", brought up to date {self.age / 3600:.1f} h ago"
        lines = [f"{self.feature_set}: live {self.live or 'none'}{age}; previous {self.previous or 'none'}"]
        for slot in self.slots:
            state = "being written" if slot.writing else "left"
            writer = f"  {state} by {slot.writer}" if slot.writer else ""
            unknown = "" if slot.orphans is None else f"  {slot.orphans:,} orphans"
            lines.append(
                f"slot {slot.slot}  {slot.version or 'no complete version':<19}  {slot.recorded:>9,} recorded  "
                f"{slot.offline:>9,} offline  {slot.missing:,} not online{unknown}{writer}"
            )
        for node, (used, limit, _) in self.memory.items():
            lines.append(f"redis {node}  {used:,} bytes used of {f'{limit:,}' if limit else 'no limit'}")
        if change := self.last_change:
            lines.append(f"last change  {change['at']}  {change['who']}  {change['action']}")
        if self.swept is not None:
            lines.append(f"swept {self.swept:,} orphans")
        return "\n".join([*lines, *(f"problem: {problem}" for problem in self.problems)])


def status(versions: Versions, *, max_age: float | None = None, orphans: bool = False) -> Status:
    """Compare record, offline rows and online rows.

    Args:
        versions: the feature set.
        max_age: seconds after which the live version counts as a problem.
        orphans: count rows online that the offline store does not have: a scan of the whole server.
    """
    problems = []
    record, now = read_with_time(versions.server, versions.key)
    pointer = Pointer.parse(record)
    try:
        versions.record()
    except FeatureStoreError as error:
        problems.append(str(error))
    slots = []
    for opened in versions.slots:
        stored, writer = pointer.in_slot(opened.slot), pointer.writers.get(opened.slot)
        rows = stored_rows(opened.folder)
        missing = len(missing_online(versions.server, opened, rows)[0])
        unknown = sum(map(len, orphans_online(versions.server, opened, rows))) if orphans else None
        entry = SlotStatus(
            opened.slot,
            stored.version if stored else None,
            stored.items if stored else 0,
            len(rows),
            missing,
            unknown,
            writer.owner if writer else None,
            bool(writer and writer.expires > now),
        )
        slots.append(entry)
        name = f"slot {entry.slot}"
        if stored and not entry.writing:
            if missing:
                problems.append(
                    f"{name}: {missing} of {entry.offline} rows of {stored.version} are not online"
                )
            if len(rows) and len(rows) != stored.items:
                problems.append(f"{name}: {entry.offline} rows offline, {stored.items} by the record")
        if writer and not entry.writing:
            problems.append(f"{name}: {writer.owner} did not complete version {writer.version}")
        if not stored and not writer and len(rows) and pointer.versions:
            problems.append(f"{name}: rows of a version that is not recorded")
        if unknown:
            problems.append(f"{name}: {unknown} rows online that are not offline; remove them with --sweep")
    live = pointer.versions.get(pointer.live or "")
    age = now - datetime.fromisoformat(live.written).astimezone(UTC).timestamp() if live else None
    if live is None:
        problems.append("no version is live")
    elif max_age is not None and age is not None and age > max_age:
        problems.append(f"the live version was brought up to date {age:.0f} s ago, above {max_age:.0f} s")
    memory = memory_of(versions.server)
    problems += [
        f"Redis at {node} uses {held.used:,} of {held.limit:,} bytes"
        for node, held in memory.items()
        if held.limit and held.used > 0.9 * held.limit
    ]
    problems += [
        f"Redis at {node} drops vectors, and may drop the version record, when it is full ({held.policy}); set "
        "maxmemory-policy noeviction"
        for node, held in memory.items()
        if held.limit and held.policy.startswith("allkeys")
    ]
    changes = read_audit(versions.server, versions.key)
    return Status(
        versions.name, pointer.live, pointer.previous, age, slots, memory, problems, next(iter(changes), None)
    )


def sweep(versions: Versions) -> int:
    """Delete rows online that the offline store does not have, slot by slot; return how many there were.

    Only for slots whose version is complete and has offline rows on this machine, and while nobody
    writes there.
    """
    swept = 0
    for stored in list(versions.record().versions.values()):
        opened = versions.slots[stored.slot - 1]
        if held_versions(opened) == (stored.version,):
            with versions.lease(stored.version, lambda record, now, slot=stored.slot: slot):  # type: ignore[misc]
                swept += sweep_online(opened, stored_rows(opened.folder))
    return swept
