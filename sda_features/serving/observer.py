"""What a client tells an observer about each request; one for Prometheus is ready.

client = EmbeddingClient(..., observer=prometheus_observer())
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from sda_features.errors import SettingsError


@dataclass(frozen=True)
class Observation:
    """One request.

    Attributes:
        seconds: how long it took.
        items: ids that were asked for.
        found: those with a vector of text or picture.
        version: adapter version that was served; None if no item is known or the request failed.
        record_age: seconds since the last materialisation of that version ended; None if unknown.
        error: name of the exception with which it failed.
    """

    seconds: float
    items: int
    found: int
    version: str | None
    record_age: float | None
    error: str | None = None


Observer: TypeAlias = Callable[[Observation], None]
"""Called after each request, in the thread or task of its caller: it must be quick, and not raise."""


def prometheus_observer(registry: Any = None, prefix: str = "sda_features") -> Observer:
    """An observer that counts with the package prometheus-client.

    Args:
        registry: a `CollectorRegistry`; None: the default one, which its HTTP endpoint serves.
        prefix: of the metrics' names.

    Raises:
        SettingsError: prometheus-client is not installed.
    """
    try:
        from prometheus_client import REGISTRY, Counter, Gauge, Histogram
    except ImportError:
        raise SettingsError(
            "Expected the package prometheus-client: pip install prometheus-client."
        ) from None
    at = registry or REGISTRY
    seconds = Histogram(f"{prefix}_read_seconds", "Duration of a read.", registry=at)
    items = Counter(f"{prefix}_items", "Items asked for.", registry=at)
    found = Counter(f"{prefix}_items_found", "Items with a vector.", registry=at)
    errors = Counter(f"{prefix}_read_errors", "Reads that failed.", ["error"], registry=at)
    reads = Counter(f"{prefix}_reads", "Reads by the version that was served.", ["version"], registry=at)
    age = Gauge(
        f"{prefix}_version_age_seconds", "Since the served version was brought up to date.", registry=at
    )

    def observe(seen: Observation) -> None:
        seconds.observe(seen.seconds)
        items.inc(seen.items)
        found.inc(seen.found)
        if seen.error:
            errors.labels(seen.error).inc()
        if seen.version:
            reads.labels(seen.version).inc()
        if seen.record_age is not None:
            age.set(seen.record_age)

    return observe
