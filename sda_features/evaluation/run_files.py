"""The files of a run folder: names, manifest, hashes, and one error for whatever is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, PositiveInt, ValidationError

from sda_features.artifacts import sha256_files
from sda_features.errors import CheckpointError, SDAError

MANIFEST, RANKS = "manifest.json", "ranks.npz"
WEIGHTS, ITEMS = "model.safetensors", "items.parquet"
SCALING, USERS = "scaling.safetensors", "users.safetensors"
RUN_FILES = {MANIFEST, RANKS, WEIGHTS, ITEMS, SCALING, USERS}
FORMAT = 1


class _Log(BaseModel):
    sha256: str


class _Protocol(BaseModel):
    cutoff: PositiveInt


class _Manifest(BaseModel):
    """What is read of a manifest without asking further; it holds more."""

    format: Literal[1] = 1
    recommender: str
    settings: dict[str, Any]
    evaluation: _Protocol
    data: _Log
    metrics: dict[str, float | None]
    files: dict[str, str] = {}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder.

    Raises:
        CheckpointError: there is none, or it is none.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"Expected a run folder with {MANIFEST}, as `sda-features train` writes it, in {folder}: {error}."
        ) from error
    manifest: dict[str, Any] = content if isinstance(content, dict) else {}
    found = manifest.get("format", FORMAT)
    if isinstance(found, int) and found > FORMAT:
        raise CheckpointError(
            f"{folder} is a run of format {found}; this version of sda-features reads format {FORMAT}. Install the "
            "version that wrote it."
        )
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        expected = ", ".join(name for name, field in _Manifest.model_fields.items() if field.is_required())
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise CheckpointError(
            f"{folder / MANIFEST} is not the manifest of a run: expected {expected} in it; "
            f"{'; '.join(faults[:3])}. Name another folder, or delete it and train again."
        ) from None
    return manifest


def file_hashes(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of every file of a run but its manifest, which holds them."""
    names = sorted(path.name for path in folder.iterdir() if path.name in RUN_FILES - {MANIFEST})
    return {name: sha256_files([folder / name]) for name in names}


@contextmanager
def run_content(folder: Path, manifest: dict[str, Any], names: Iterable[str]) -> Iterator[None]:
    """A block that reads files of a run: whatever goes wrong in it is one error.

    Args:
        folder: the run folder.
        manifest: its manifest, whose hashes the files must have; a run of an earlier version has none.
        names: the files.

    Raises:
        CheckpointError: a file is missing, damaged or of another run.
    """
    try:
        for name in names:
            expected = manifest.get("files", {}).get(name)
            if expected not in (None, sha256_files([folder / name])):
                raise ValueError(f"{name} is not the file that was written with it")
        yield
    except (MemoryError, CheckpointError):
        raise
    except Exception as error:
        for_people = isinstance(error, SDAError | OSError | ValueError)
        said = " ".join(str(error).split())[:1000] if for_people else repr(error)
        raise CheckpointError(
            f"{folder} is not a complete run folder: {said.rstrip('.')}. Copy the whole folder again, or delete it "
            "and train again."
        ) from error
