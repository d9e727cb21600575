"""Which version of a feature set is served and who fills its slots: one small record in Redis.

Each slot of a feature set holds the vectors of one version (layout.py). The record says what each
slot holds, which version is live, and which writer has which slot. It is one string, so whoever
reads it sees it whole, and it changes in one step or not at all; its key matches no key of Feast.
A feature set without a record is served from slot 1, whoever filled it.

A change is compare-and-set in a script of one key's hash slot, which one server, Sentinel and a
cluster run alike. It may run twice: when the reply to the first was lost, the second finds the
record that it wanted to write.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any, Self, TypeVar

import redis

from sda_features.errors import OnlineStoreError

FORMAT = 2
"""Format of the record. Format 1 had neither writers nor this number; its readers can read format 2."""
AUDIT_ENTRIES = 1000
_ATTEMPTS = 100

_READ = "return {redis.call('GET', KEYS[1]), redis.call('TIME')}"
_CHANGE = f"""
local stored = redis.call('GET', KEYS[1])
if stored == ARGV[2] then return 1 end
if (stored or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
if ARGV[3] ~= '' then
  redis.call('LPUSH', KEYS[2], ARGV[3])
  redis.call('LTRIM', KEYS[2], 0, {AUDIT_ENTRIES - 1})
end
return 1
"""

Stored = TypeVar("Stored", "StoredVersion", "Writer")


@dataclass(frozen=True)
class StoredVersion:
    """What one slot holds.

    Attributes:
        version: adapter version of its vectors.
        slot: number of the slot, from 1.
        items: items with a vector.
        dim: dimension of the vectors.
        store_dtype: how their numbers are stored.
        written: ISO time at which the last materialisation of this version ended: then, every item
            of the catalogue was there and unchanged.
    """

    version: str
    slot: int
    items: int
    dim: int
    store_dtype: str
    written: str


@dataclass(frozen=True)
class Writer:
    """Who fills a slot, or began to and has not completed it.

    Attributes:
        version: the version that goes there.
        slot: number of the slot.
        token: fencing token; that of a later writer is greater.
        owner: user, host and process.
        place: where process ids mean the same: the boot of a machine and its process namespace.
        expires: seconds since 1970 by the server's clock, after which another writer may take the
            slot; 0: the writer has ended.
    """

    version: str
    slot: int
    token: int
    owner: str
    expires: float
    place: str = ""


@dataclass(frozen=True)
class Pointer:
    """The record of a feature set.

    Attributes:
        live: version that readers get; None until one is promoted.
        previous: version that was live before; what `rollback` returns to.
        versions: version -> its slot; complete materialisations only.
        writers: slot -> who fills it. A slot with a writer that is not in `versions` is incomplete.
    """

    live: str | None = None
    previous: str | None = None
    versions: Mapping[str, StoredVersion] = field(default_factory=dict)
    writers: Mapping[int, Writer] = field(default_factory=dict)

    @classmethod
    def parse(cls, record: bytes | None) -> Self:
        """Read the record; an absent one is an empty pointer. Fields that are not known are ignored.

        Raises:
            OnlineStoreError: the record is damaged, or of a later format.
        """
        if record is None:
            return cls()
        try:
            content = json.loads(record)
            written_as = content.get("format", 1)
            if written_as > FORMAT:
                raise OnlineStoreError(
                    f"The version record in the online store has format {written_as}; this sda-features reads up to "
                    f"{FORMAT}. Upgrade it here, too: readers first, then writers (docs/runbook.md)."
                )
            versions = {name: _known(StoredVersion, stored) for name, stored in content["versions"].items()}
            writers = {
                int(slot): _known(Writer, writer) for slot, writer in content.get("writers", {}).items()
            }
            return cls(content["live"], content["previous"], versions, writers)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise OnlineStoreError(
                f"The version record in the online store is damaged ({type(error).__name__}). Restore it with "
                "`sda-features versions --repair`."
            ) from None

    def serialize(self) -> bytes:
        """The record as it is stored."""
        content: dict[str, Any] = {"format": FORMAT, **asdict(self)}
        return json.dumps(content, separators=(",", ":"), sort_keys=True).encode()

    def slot_of(self, version: str | None = None) -> int | None:
        """Slot of a version, by default the live one; None if it is not stored."""
        stored = self.versions.get(version or self.live or "")
        return None if stored is None else stored.slot

    def in_slot(self, slot: int) -> StoredVersion | None:
        """The complete version in a slot."""
        return next((stored for stored in self.versions.values() if stored.slot == slot), None)

    def with_version(self, stored: StoredVersion) -> Pointer:
        """With `stored` in its slot; a version that was in that slot before is forgotten."""
        kept = {name: other for name, other in self.versions.items() if other.slot != stored.slot}
        return self._without_dangling({**kept, stored.version: stored})

    def without_version(self, version: str) -> Pointer:
        """Without `version`."""
        return self._without_dangling({name: v for name, v in self.versions.items() if name != version})

    def promoted(self, version: str) -> Pointer:
        """With `version` live and the one that was live as `previous`."""
        if version == self.live:
            return self
        return replace(self, live=version, previous=self.live)

    def with_writer(self, writer: Writer) -> Pointer:
        """With a writer in its slot."""
        return replace(self, writers={**self.writers, writer.slot: writer})

    def without_writer(self, slot: int) -> Pointer:
        """With nobody writing to a slot."""
        return replace(self, writers={n: writer for n, writer in self.writers.items() if n != slot})

    def _without_dangling(self, versions: dict[str, StoredVersion]) -> Pointer:
        live, previous = (name if name in versions else None for name in (self.live, self.previous))
        return replace(self, live=live, previous=previous, versions=versions)


def pointer_key(project: str, feature_set: str) -> bytes:
    """Redis key of the record."""
    return f"sda-features:{project}:{feature_set}:versions".encode()


def audit_key(key: bytes) -> bytes:
    """Redis key of the list of changes of the record at `key`, newest first; on a cluster beside it."""
    return b"{" + key + b"}:audit"


def whoami() -> str:
    """This process, for messages and the audit list."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())  # a container's user often has no name
    return f"{user}@{socket.gethostname()}:{os.getpid()}"


def read_pointer(server: Any, key: bytes) -> Pointer:
    """The record as it is now."""
    return Pointer.parse(server.get(key))


def read_audit(server: Any, key: bytes) -> list[dict[str, Any]]:
    """Changes of the record, newest first: at, who, action, and the live version from and to."""
    return [json.loads(entry) for entry in server.lrange(audit_key(key), 0, -1)]


def read_with_time(server: Any, key: bytes) -> tuple[bytes | None, float]:
    """The record, and the server's clock in seconds since 1970."""
    record, (seconds, micros) = server.eval(_READ, 1, key)
    return record, int(seconds) + int(micros) / 1e6


def move_pointer(
    server: redis.Redis,
    key: bytes,
    change: Callable[[Pointer], Pointer] | Callable[[Pointer, float], Pointer],
    action: str = "",
    *,
    timed: bool = False,
) -> Pointer:
    """Replace the record by `change(record)` in one step; other writers wait their turn.

    Args:
        server: the online store, a cluster as well.
        key: see `pointer_key`.
        change: a pure function that names what it wants, never "the other one": it runs again when
            another writer was faster. What it raises ends the move with nothing changed.
        action: what the audit list says; empty: the change is not listed.
        timed: `change` gets the server's clock as second argument.

    Returns:
        The record as it is stored now.
    """
    for _ in range(_ATTEMPTS):
        record, now = read_with_time(server, key)
        before = Pointer.parse(record)
        after: Pointer = change(before, now) if timed else change(before)  # type: ignore[call-arg]
        if after == before:
            return before
        entry = {
            "at": datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds"),
            "who": whoami(),
            "action": action,
            "from": before.live,
            "to": after.live,
        }
        arguments = (record or b"", after.serialize(), json.dumps(entry) if action else "")
        if server.eval(_CHANGE, 2, key, audit_key(key), *arguments):
            return after
    raise OnlineStoreError(f"The version record changed during each of {_ATTEMPTS} attempts to change it.")


def _known(kind: type[Stored], content: Mapping[str, Any]) -> Stored:
    """A dataclass of the fields that it has."""
    names = {item.name for item in fields(kind)}
    return kind(**{name: value for name, value in content.items() if name in names})
