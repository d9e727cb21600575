"""Which version of a feature set is served: one small record in Redis, beside the vectors.

Each slot of a feature set holds the vectors of one version (layout.py). The record says what each
slot holds and which version is live. It is one string, so whoever reads it sees it whole, and it
changes in one step or not at all; its key matches no key of Feast. A feature set without a record
is served from slot 1, whoever filled it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import redis

from sda_features.errors import OnlineStoreError


@dataclass(frozen=True)
class StoredVersion:
    """What one slot holds.

    Attributes:
        version: adapter version of its vectors.
        slot: number of the slot, from 1.
        items: items with a vector.
        dim: dimension of the vectors.
        store_dtype: how their numbers are stored.
        written: ISO time at which the last materialisation of this version ended.
    """

    version: str
    slot: int
    items: int
    dim: int
    store_dtype: str
    written: str


@dataclass(frozen=True)
class Pointer:
    """The record of a feature set.

    Attributes:
        live: version that readers get; None until one is promoted.
        previous: version that was live before; what `rollback` returns to.
        versions: version -> its slot; complete materialisations only.
    """

    live: str | None = None
    previous: str | None = None
    versions: Mapping[str, StoredVersion] = field(default_factory=dict)

    @classmethod
    def parse(cls, record: bytes | None) -> Self:
        """Read the record; an absent one is an empty pointer.

        Raises:
            OnlineStoreError: the record is damaged.
        """
        if record is None:
            return cls()
        try:
            content = json.loads(record)
            versions = {name: StoredVersion(**stored) for name, stored in content["versions"].items()}
            return cls(content["live"], content["previous"], versions)
        except (ValueError, TypeError, KeyError) as error:
            raise OnlineStoreError(
                f"The version record in the online store is damaged ({type(error).__name__}); delete its key and "
                "materialize again."
            ) from None

    def serialize(self) -> bytes:
        """The record as it is stored."""
        content: dict[str, Any] = asdict(self)
        return json.dumps(content, separators=(",", ":"), sort_keys=True).encode()

    def slot_of(self, version: str | None = None) -> int | None:
        """Slot of a version, by default the live one; None if it is not stored."""
        stored = self.versions.get(version or self.live or "")
        return None if stored is None else stored.slot

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

    def _without_dangling(self, versions: dict[str, StoredVersion]) -> Pointer:
        live, previous = (name if name in versions else None for name in (self.live, self.previous))
        return Pointer(live, previous, versions)


def pointer_key(project: str, feature_set: str) -> bytes:
    """Redis key of the record."""
    return f"sda-features:{project}:{feature_set}:versions".encode()


def read_pointer(server: redis.Redis, key: bytes) -> Pointer:
    """The record as it is now."""
    record: bytes | None = server.get(key)  # type: ignore[assignment]
    return Pointer.parse(record)


def move_pointer(server: redis.Redis, key: bytes, change: Callable[[Pointer], Pointer]) -> Pointer:
    """Replace the record by `change(record)` in one step; other writers wait their turn.

    Args:
        server: the online store.
        key: see `pointer_key`.
        change: a pure function; it runs again when another writer was faster. What it raises ends
            the move with nothing changed.

    Returns:
        The record as it is stored now.
    """
    changed = Pointer()

    def set_changed(pipeline: redis.client.Pipeline) -> None:
        nonlocal changed
        changed = change(Pointer.parse(pipeline.get(key)))  # type: ignore[arg-type]
        pipeline.multi()
        pipeline.set(key, changed.serialize())

    server.transaction(set_changed, key)  # type: ignore[no-untyped-call]
    return changed
