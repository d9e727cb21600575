"""What a published model is: its files, and a hash of the numbers in them.

The hash is taken without running anything of the model, so that it can be compared before anything is
loaded. It covers tensors by name, whatever files they lie in, the configuration without the notes of
whoever saved it, and Python code that ships with the model.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from sda_features.artifacts import sha256_json
from sda_features.errors import BackboneError, foreign

CONFIG, WHOLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
NOTES = ("transformers_version", "_name_or_path")  # who saved it, from where
CHUNK = 2**24  # bytes read at a time
THREADS = 4  # hashing runs beside reading
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def fingerprint(model: str) -> str:
    """SHA-256 (hex) over weights, configuration and code of a model, a folder or a hub name.

    Quantisation and sharding do not count.

    Raises:
        BackboneError: no such model, no weights in safetensors, or weights that are not whole.
    """
    with foreign(BackboneError, f"The files of {model} cannot be read"):
        folder = locate(model)
        config = read_config(folder)
        code = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.py")}
        stats = [(path, path.stat()) for path in weight_files(model, folder)]
        files = tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)
        return sha256_json(
            {
                "config": {name: value for name, value in config.items() if name not in NOTES},
                "tensors": _tensors_sha256(files),
                **({"code": code} if code else {}),
            }
        )


def check_whole(model: str) -> None:
    """Look at the headers of a model's weights before anything loads them: others' messages do not tell what is wrong.

    Raises:
        BackboneError: as `fingerprint`.
    """
    with foreign(BackboneError, f"The files of {model} cannot be read"):
        for path in weight_files(model, locate(model)):
            list(_tensors(path, path.stat().st_size))


def locate(model: str) -> Path:
    """The folder in which a model's configuration lies; that of the local hub cache for a hub name.

    Raises:
        BackboneError: there is none, with what lies there instead.
    """
    folder = Path(model)
    if folder.is_dir() and not (folder / CONFIG).exists():
        what = {
            "adapter_config.json": "a PEFT adapter; give the base model that it adapts",
            "adapter.safetensors": "a checkpoint of `sda-features adapt`; give it with --checkpoint",
            "checkpoint": "a run folder of `sda-features adapt`; give its checkpoint/ with --checkpoint",
        }
        found = next((text for name, text in what.items() if (folder / name).exists()), None)
        if found:
            raise BackboneError(f"{model} is no base model but {found}.")
    try:
        file = cached_file(model, CONFIG)
    except Exception as error:
        raise BackboneError(
            f"No model at {model!r}: expected a folder with {CONFIG} or the name of a model in the local hub "
            f"cache. transformers said: {(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from error
    if file is None:
        raise BackboneError(f"No model at {model!r}: expected a folder with {CONFIG}, it has none.")
    return Path(file).parent


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a model as JSON.

    Raises:
        BackboneError: damaged.
    """
    with foreign(BackboneError, f"{folder / CONFIG} is damaged"):
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise BackboneError(f"{folder / CONFIG} is damaged: expected an object, got {type(config).__name__}.")
    return config


def weight_files(model: str, folder: Path) -> list[Path]:
    """The files that transformers would load, in the order of their names; a hub model's are fetched.

    Raises:
        BackboneError: there are none, or one that the index names is missing.
    """
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not Path(model).is_dir():
        names = [WHOLE]
    if (index := _fetch(model, INDEX)) and not _fetch(model, WHOLE):
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    elif WHOLE in names:
        names = [WHOLE]
    files = [_fetch(model, name) for name in names]
    if missing := [name for name, path in zip(names, files, strict=True) if path is None]:
        raise BackboneError(
            f"{model} lacks {missing[0]}, a file of its weights; copy or download the model again."
        )
    if not files:
        raise BackboneError(
            f"Expected weights in safetensors beside {folder / CONFIG}, found none. Weights in other formats (.bin, "
            ".pt, .gguf) are not loaded, because reading them can run code; convert them to safetensors."
        )
    return [path for path in files if path is not None]


def _fetch(model: str, name: str) -> Path | None:
    try:
        return Path(cached_file(model, name))
    except OSError:
        return None


@lru_cache(maxsize=8)
def _tensors_sha256(files: tuple[tuple[Path, int, int], ...]) -> str:
    """SHA-256 (hex) over name, dtype, shape and bytes of all tensors; files that have not changed are read once."""
    tensors = [tensor for path, size, _ in files for tensor in _tensors(path, size)]
    with ThreadPoolExecutor(THREADS) as pool:
        digests = pool.map(lambda tensor: _sha256(*tensor[3:]), tensors)
        found = {tensor[0]: [*tensor[1:3], digest] for tensor, digest in zip(tensors, digests, strict=True)}
    return sha256_json(found)


def _tensors(path: Path, size: int) -> Iterator[tuple[str, str, list[int], Path, int, int]]:
    """Name, dtype, shape, file, first byte and end of each tensor (the safetensors format)."""
    with open(path, "rb") as stream:
        start = stream.read(8)
        if start + stream.read(len(LFS_POINTER) - 8) == LFS_POINTER:
            raise BackboneError(
                f"{path} is a git-lfs pointer and not the weights: run `git lfs pull` in that folder, or download "
                "the model with `hf download`."
            )
        length = int.from_bytes(start, "little")
        if size < 8 or length > size - 8:
            raise BackboneError(f"{path} is no safetensors file, or cut off; copy or download it again.")
        stream.seek(8)
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    ends = [entry["data_offsets"][1] for entry in header.values()]
    if size != 8 + length + max(ends, default=0):
        raise BackboneError(
            f"{path} is cut off or damaged: it has {size:,} bytes and its header tells of "
            f"{8 + length + max(ends, default=0):,}. Copy or download it again."
        )
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        yield name, entry["dtype"], entry["shape"], path, begin, end


def _sha256(path: Path, begin: int, end: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as stream:
        while begin < end:
            chunk = os.pread(stream.fileno(), min(CHUNK, end - begin), begin)
            if not chunk:
                raise BackboneError(f"{path} became shorter while it was read.")
            digest.update(chunk)
            begin += len(chunk)
    return digest.hexdigest()
