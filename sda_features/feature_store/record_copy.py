"""A copy of the version record beside the offline rows, for when Redis has lost it."""

from __future__ import annotations

from pathlib import Path

from sda_features.artifacts import atomic_file
from sda_features.feature_store.repo import FeatureSet
from sda_features.serving.pointer import Pointer

FILE = ".versions.json"  # readers of parquet folders skip names with a dot


def write_copy(first: FeatureSet, record: Pointer) -> None:
    """Keep a record in the folder of slot 1; nothing happens if its rows are not in a local folder."""
    if first.is_local:
        first.folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(_path(first)) as temporary:
            temporary.write_bytes(record.serialize())


def read_copy(first: FeatureSet) -> Pointer | None:
    """The record that was kept last on this machine; None without one.

    Raises:
        OnlineStoreError: it is damaged.
    """
    path = _path(first) if first.is_local else None
    return Pointer.parse(path.read_bytes()) if path and path.exists() else None


def _path(first: FeatureSet) -> Path:
    return first.folder / FILE
