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
from tests.feast_repo import later, make_repo, new_repo  # noqa: F401  fixtures

# A loaded machine is no fault of the code: nothing in the tests depends on time.
# In CI the same examples each time: what a search finds belongs to whoever searches.
hypothesis.settings.register_profile("sda", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("sda")

KINDS = ("hostile", "fault")


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Note the kind of a test where reports of other processes carry it, too."""
    for item in items:
        item.user_properties += [("kind", mark) for mark in KINDS if item.get_closest_marker(mark)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count hostile inputs and faults."""
    for mark in KINDS:
        counts = {
            outcome: sum(
                ("kind", mark) in map(tuple, getattr(report, "user_properties", []))
                for report in terminalreporter.getreports(outcome)
            )
            for outcome in ("passed", "failed", "error", "skipped")
        }
        terminalreporter.write_line(
            f"{mark}: " + ", ".join(f"{n} {outcome}" for outcome, n in counts.items())
        )
