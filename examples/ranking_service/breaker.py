"""A circuit breaker: a dependency that keeps failing is left alone for a while, then tried by one caller."""

from __future__ import annotations

import time
from collections.abc import Callable


class CircuitBreaker:
    """Closed after a success; open after `failures` failures in a row.

    While it is open, `allow` says no, except once every `pause` seconds: that caller's success
    closes it. For one event loop; it has no lock.

    Args:
        failures: failures in a row that open it.
        pause: seconds between two attempts while it is open.
        clock: monotonic seconds.
    """

    def __init__(self, failures: int, pause: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._pause, self._clock = failures, pause, clock
        self._failed = 0
        self._next_attempt = 0.0

    @property
    def is_open(self) -> bool:
        """Whether callers are turned away."""
        return self._failed >= self._limit

    def allow(self) -> bool:
        """Whether this caller may try. A caller that may must report `success` or `failure`."""
        if not self.is_open:
            return True
        if self._clock() < self._next_attempt:
            return False
        self._next_attempt = self._clock() + self._pause  # others wait for this one
        return True

    def success(self) -> None:
        """Report that a try succeeded."""
        self._failed = 0

    def failure(self) -> None:
        """Report that a try failed."""
        self._failed += 1
        if self.is_open:
            self._next_attempt = self._clock() + self._pause
