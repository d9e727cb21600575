"""A process killed while it writes the registry leaves the one from before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sda_features.feature_store.repo import open_feature_set

KILLED_AFTER_OPENING = """
import os, signal, sys, types
from feast import FeatureStore
from sda_features.feature_store.registry_file import write_registry_whole
store = FeatureStore(repo_path=sys.argv[1])
if sys.argv[2] == "whole":
    write_registry_whole(store)
written = types.SimpleNamespace(last_updated=types.SimpleNamespace(FromDatetime=lambda now: None))
written.SerializeToString = lambda: os.kill(os.getpid(), signal.SIGKILL)  # the file is open by now
store.registry._registry_store.update_registry_proto(written)
"""


@pytest.mark.parametrize("how", ["stock", "whole"])
def test_a_kill_in_mid_write_empties_the_registry_of_stock_feast_alone(
    make_repo: Callable[..., Path], how: str
) -> None:
    repo = make_repo()
    registry = repo / "data/registry.db"
    before = registry.read_bytes()
    killed = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED_AFTER_OPENING, repo, how], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert registry.read_bytes() == (before if how == "whole" else b"")


def test_what_is_written_is_read_again(make_repo: Callable[..., Path]) -> None:
    repo = make_repo()
    mode = os.stat(repo / "data/registry.db").st_mode
    opened, noon = open_feature_set(repo, "sda"), datetime(2026, 1, 1, 12, tzinfo=UTC)
    opened.store.registry.apply_materialization(opened.view, opened.store.project, noon, noon)
    again = open_feature_set(repo, "sda").view
    assert again.most_recent_end_time == noon
    assert os.stat(repo / "data/registry.db").st_mode == mode
    assert not [path for path in (repo / "data").iterdir() if path.name.startswith(".registry")]
