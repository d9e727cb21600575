"""What Prometheus scrapes. One registry a service, so that tests can run several in a process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class Metrics:
    """The metrics; the share of items found is rate(items_found) / rate(items_asked)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.request_seconds = Histogram(
            "ranking_request_seconds",
            "From the parsed request to the ranking.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.lookup_seconds = Histogram(
            "ranking_lookup_seconds",
            "Reads of vectors, failed ones too.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.items_asked = Counter(
            "ranking_items_asked", "Items whose vectors were asked for.", registry=self.registry
        )
        self.items_found = Counter(
            "ranking_items_found", "Items whose vectors were found.", registry=self.registry
        )
        self.answers = Counter("ranking_answers", "Rankings, by basis.", ["basis"], registry=self.registry)
        self.degraded = Counter("ranking_degraded", "Degraded rankings.", ["reason"], registry=self.registry)
        self.read_errors = Counter(
            "ranking_read_errors", "Failed reads of vectors.", ["reason"], registry=self.registry
        )
        self.breaker_open = Gauge(
            "ranking_breaker_open", "1 while Redis is left alone.", registry=self.registry
        )
        self.model = Info("ranking_model", "What is served.", registry=self.registry)
