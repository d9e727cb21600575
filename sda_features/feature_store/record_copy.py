"""A copy of the version record beside the offline rows, for when Redis has lost it."""

from __future__ import annotations

from pathlib import Path

from sda_features.artifacts import atomic_file
from sda_features.feature_store.repo import FeatureSet
from sda_features.offline.location import is_url, open_folder
from sda_features.serving.pointer import Pointer

FILE = ".versions.json"  # readers of parquet folders skip names with a dot


def write_copy(first: FeatureSet, record: Pointer) -> None:
    """Keep a record in the folder of slot 1."""
    if is_url(first.folder):
        with open_folder(first.folder).open_output_stream(FILE) as stream:
            stream.write(record.serialize())
    else:
        with atomic_file(Path(first.folder, FILE)) as temporary:
            temporary.write_bytes(record.serialize())


def read_copy(first: FeatureSet) -> Pointer | None:
    """The record that was kept last; None without one.

    Raises:
        OnlineStoreError: it is damaged.
    """
    try:
        with open_folder(first.folder).open_input_stream(FILE, compression=None) as stream:
            return Pointer.parse(stream.read())
    except FileNotFoundError:
        return None
