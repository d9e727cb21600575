"""Feast's registry file, written whole or not at all.

Feast empties the file and writes it anew, at the end of every materialisation too. A process that is
killed between the two leaves a registry in which nothing is applied.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from feast import FeatureStore
from feast.infra.registry.file import FileRegistryStore

from sda_features.artifacts import atomic_file


class WholeFileRegistryStore(FileRegistryStore):  # type: ignore[misc]
    """Feast's store of a registry file, which replaces the file in one step."""

    def __init__(self, path: Path):
        self._filepath = path

    def _write_registry(self, registry_proto: Any) -> None:
        with atomic_file(self._filepath) as temporary:
            FileRegistryStore._write_registry(WholeFileRegistryStore(temporary), registry_proto)


def write_registry_whole(store: FeatureStore) -> None:
    """Make `store` replace its registry file in one step; other kinds of registry stay as they are."""
    registry: Any = store.registry
    inner: Any = getattr(registry, "_registry_store", None)
    if type(inner) is FileRegistryStore:
        registry._registry_store = WholeFileRegistryStore(inner._filepath)
