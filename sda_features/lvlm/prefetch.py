"""Work that is prepared in a thread while the model runs."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def prefetch(source: Iterator[T], depth: int) -> Iterator[Iterator[T]]:
    """Run an iterator in a thread of its own, at most `depth` values ahead of its reader.

    Values and exceptions arrive in the source's order. Leaving the block gives up what is not yet
    read, after the value in progress.
    """
    end = object()
    worker = ThreadPoolExecutor(1)
    waiting = deque(worker.submit(next, source, end) for _ in range(depth))

    def values() -> Iterator[T]:
        while (value := waiting.popleft().result()) is not end:
            waiting.append(worker.submit(next, source, end))
            yield value  # type: ignore[misc]

    try:
        yield values()
    finally:
        worker.shutdown(wait=False, cancel_futures=True)
