"""One writer at a time in the folder of a slot, on one machine.

Leases (online/lease.py) keep writers of all machines apart, where Redis keeps a record of versions.
This lock is for what they leave: feature sets without a record (one slot, another online store),
and the moment between a look at the lease and the write, in which a process may be paused.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from sda_features.errors import FeatureStoreError
from sda_features.offline.location import Location, is_url

LOCK_FILE = ".lock"  # readers of parquet folders skip names with a dot


@contextlib.contextmanager
def writing(folder: Location) -> Iterator[None]:
    """Hold the writer's lock of a folder while the block runs.

    The lock goes with the process that holds it, however that ends. The file stays: a lock on a
    file that another process has just removed would hold nobody back. On a network file system it
    holds between machines only if `flock` does there. At a URL there is none: there, the log of the
    table lets one of two writers win that change the same files.

    Args:
        folder: folder of parts; created when missing.

    Raises:
        FeatureStoreError: another process, or another block of this one, is writing there.
    """
    if is_url(folder):
        yield
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
            raise FeatureStoreError(
                f"Another run is writing to {folder} (process {holder or 'unknown'}). "
                "Wait until it has ended and run again; what it has finished is not done twice."
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
