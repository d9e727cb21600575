"""Rows that were read before, in the memory of this process: the least recently used ones go first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

from sda_features.errors import SettingsError
from sda_features.serving.wire import Row


@dataclass(frozen=True)
class CacheStatistics:
    """Rows that a cache was asked for and had, or had not; and rows in it now."""

    hits: int = 0
    misses: int = 0
    items: int = 0


class RowCache:
    """At most `size` rows by version and item id. Threads may share it.

    A version here is whatever names the state of the vectors: rows of an older state are never
    found again and are pushed out by newer ones. That an item is unknown is kept, too.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise SettingsError(f"Expected a cache of at least one item, got {size}.")
        self.size = size
        self._rows: OrderedDict[tuple[Hashable, Hashable], Row] = OrderedDict()
        self._lock = threading.Lock()
        self._hits = self._misses = 0

    @property
    def statistics(self) -> CacheStatistics:
        """Counts since the cache was made."""
        with self._lock:
            return CacheStatistics(self._hits, self._misses, len(self._rows))

    def get(self, version: Hashable, ids: Iterable[str | int]) -> dict[str | int, Row]:
        """The rows among those of `ids` that are here."""
        found: dict[str | int, Row] = {}
        with self._lock:
            for item_id in ids:
                row = self._rows.get((version, item_id))
                if row is None:
                    self._misses += 1
                else:
                    self._hits += 1
                    self._rows.move_to_end((version, item_id))
                    found[item_id] = row
        return found

    def put(self, version: Hashable, rows: Mapping[str | int, Row]) -> None:
        """Keep rows; the least recently used make room."""
        with self._lock:
            for item_id, row in rows.items():
                self._rows[version, item_id] = row
                self._rows.move_to_end((version, item_id))
            while len(self._rows) > self.size:
                self._rows.popitem(last=False)
