"""Files that outlive a run: atomic writes, content hashes, manifests.

Nothing half-written is ever visible: a file or a folder is written under a temporary name beside
its target, flushed to disk, and renamed. What a killed run left under such a name is removed by the
next one; the name is locked while its writer lives, so a run beside this one keeps what it has.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import math
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from sda_features.errors import SettingsError

TEMPORARY, ASIDE = ".tmp", ".old"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of <fcntl.h> and <stdio.h>
CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `target` when the block ends without an error.

    Args:
        target: final path; its parent is created when missing.

    Raises:
        SettingsError: `target` is a folder, a device or the like.
    """
    target = real_path(Path(target))
    if target.exists() and not target.is_file():
        raise SettingsError(f"{target} exists and is no regular file; name another file to write.")
    make_folder(target.parent)
    with _in_temporary(target, partial(Path.touch, exist_ok=False)) as temporary:
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        _flush(temporary)
        os.replace(temporary, target)
        _flush(target.parent)


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `target` when the block ends without an error.

    An existing `target` is replaced. Where the file system can exchange two folders (Linux: ext4,
    xfs, btrfs, tmpfs, overlay) the old or the new one is there at every instant, also after a kill.
    Elsewhere the old one steps aside for the moment between two renames, and if that moment is the
    last one, the next run brings it back.

    Raises:
        SettingsError: `target` exists and is no folder.
    """
    target = real_path(Path(target))
    if target.exists() and not target.is_dir():
        raise SettingsError(f"{target} exists and is no folder; name another folder to write.")
    make_folder(target.parent)
    with _in_temporary(target, Path.mkdir) as temporary:
        mode = temporary.stat().st_mode
        yield temporary
        for path in [temporary, *temporary.rglob("*")]:
            path.chmod(mode if path.is_dir() else mode & 0o666)  # some libraries make files for one user
            _flush(path)
        if target.exists():
            _exchange(temporary, target)
        else:
            os.replace(temporary, target)
        _flush(target.parent)


def check_folder(target: Path, ours: Collection[str], what: str) -> None:
    """Refuse an output that exists and is not a folder of ours, before any work is done for it.

    Args:
        target: folder to write; it may be missing or empty.
        ours: names of all that such a folder can hold; names that begin with a dot are free.
        what: such a folder, e.g. "an earlier export".

    Raises:
        SettingsError: it is a file, a device or the like, or holds something else.
    """
    real = real_path(Path(target))
    if not real.exists():
        return
    if not real.is_dir():
        raise SettingsError(f"{target} exists and is no folder; name another folder to write.")
    foreign = sorted(
        path.name for path in real.iterdir() if path.name not in ours and not path.name.startswith(".")
    )
    if foreign:
        raise SettingsError(
            f"{target} exists and is not {what}: it holds {', '.join(foreign[:3])}"
            f"{', ...' if len(foreign) > 3 else ''}. Name a new or empty folder."
        )


def make_folder(folder: Path) -> None:
    """Create a folder and its parents.

    Raises:
        SettingsError: something on the way is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        way = next(path for path in (folder, *folder.parents) if path.exists())
        raise SettingsError(f"{folder} cannot be a folder: {way} is a file. Name another place.") from None


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[bool]:
    """Whether this process alone writes to a folder while the block runs; the lock ends with the process.

    On a network file system it holds between machines only if `flock` does there.
    """
    with contextlib.ExitStack() as stack:
        held = True
        try:
            stack.enter_context(_lock(folder, wait=False))
        except BlockingIOError:
            held = False
        except OSError:  # a file system without locks
            pass
        yield held


def remove_leftovers(target: Path) -> None:
    """Remove what killed writers of `target` left beside it, and bring back a folder that had stepped aside."""
    with os.scandir(target.parent) as entries:
        left = [Path(entry.path) for entry in entries if entry.name.startswith(f".{target.name}.")]
    for path in left:
        if path.suffix not in (TEMPORARY, ASIDE) or len(path.name) != len(_temporary(target).name):
            continue
        with contextlib.suppress(OSError), _lock(path, wait=False):
            if path.suffix == ASIDE and not target.exists():
                os.replace(path, target)
            else:
                _remove(path)


@contextlib.contextmanager
def _in_temporary(target: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A new file or folder next to `target`, locked while the block runs and gone after it."""
    remove_leftovers(target)
    with contextlib.ExitStack() as stack:
        while True:
            temporary = _temporary(target)
            make(temporary)
            stack.callback(_remove, temporary)
            with contextlib.suppress(OSError):  # a file system without locks, or a run that tidies up
                stack.enter_context(_lock(temporary, wait=True))
            if temporary.exists():  # not taken for a leftover before it was locked
                break
        yield temporary


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}{TEMPORARY}")


@contextlib.contextmanager
def _lock(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock of a file or folder; it ends with the process. OSError: held by another, or not to be had."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _exchange(temporary: Path, target: Path) -> None:
    """Put `temporary` in the place of the folder `target`, and what was there in its own."""
    try:
        _rename_exchange(temporary, target)
    except OSError as error:
        if error.errno not in CANNOT_EXCHANGE:
            raise
        aside = temporary.with_suffix(ASIDE)
        os.replace(target, aside)
        os.replace(temporary, target)
        _remove(aside)


def _rename_exchange(first: Path, second: Path) -> None:
    """renameat2(2) with RENAME_EXCHANGE, which Python does not offer."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(first), None, str(second))


def real_path(path: Path) -> Path:
    """The path behind symbolic links, so that a link stays and what it names is replaced.

    Raises:
        SettingsError: links in a circle, a NUL, or the like.
    """
    try:
        return path.resolve()
    except (RuntimeError, OSError, ValueError) as error:
        raise SettingsError(f"{str(path)!r} cannot be a path to write: {error}.") from None


def write_json(target: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    with atomic_file(target) as temporary:
        temporary.write_text(to_json(content, indent=2) + "\n", encoding="utf-8")


def to_json(content: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: numbers that are not finite become null."""
    return json.dumps(_finite(content), indent=indent, default=str, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    return [_finite(value) for value in content] if isinstance(content, list | tuple) else content


def sha256_files(paths: Iterable[Path]) -> str:
    """SHA-256 (hex) over the contents of `paths`, in the order given; names do not count."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def sha256_json(content: Any) -> str:
    """SHA-256 (hex) of `content` in canonical JSON (sorted keys, no spaces)."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


@cache
def source_commit() -> str | None:
    """Commit of this package's sources, ending in -dirty when files differ; None outside a git checkout of it."""
    here = Path(__file__)
    try:
        for command in (
            ["ls-files", "--error-unmatch", here.name],
            ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        ):
            done = subprocess.run(
                ["git", *command], cwd=here.parent, capture_output=True, text=True, check=True
            )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
