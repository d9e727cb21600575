"""Fixtures for every folder of tests."""

import os

# Threads that wait for each other cost more than they bring to tiny models, tenfold where cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from itertools import count

import hypothesis
import prometheus_client  # noqa: F401  before Feast, which would make it share all values of a process
import pytest

from sda_features.serving.embedded import embedded_redis

# A loaded machine is no fault of the code: nothing in the tests depends on time.
# In CI the same examples each time: what a search finds belongs to whoever searches.
hypothesis.settings.register_profile("sda", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("sda")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[tuple[str, int]]:
    """Host and port of a real server (Valkey) that all tests share; keep apart by Feast project."""
    with embedded_redis() as server:
        yield server


@pytest.fixture(scope="session")
def new_project() -> Callable[[], str]:
    """A callable that names a Feast project which no other test uses."""
    numbers = count()
    return lambda: f"project_{next(numbers)}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Count hostile inputs and faults where they are what was asked for (`make hostile`)."""
    if "hostile" not in config.option.markexpr:
        return
    for mark in ("hostile", "fault"):
        counts = {
            outcome: sum(
                mark in getattr(report, "keywords", {}) for report in terminalreporter.getreports(outcome)
            )
            for outcome in ("passed", "failed", "error", "skipped")
        }
        terminalreporter.write_line(
            f"{mark}: " + ", ".join(f"{n} {outcome}" for outcome, n in counts.items())
        )
