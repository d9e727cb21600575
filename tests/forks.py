"""Jobs in forks of this process, which has imported torch and Feast, so that a job costs no start.

This process itself starts no thread, because a fork has only the one that called it.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

FORKS = multiprocessing.get_context("fork")
FAILED, KILLED = "failed", "killed"

Forked = tuple[BaseProcess, Connection]


def fork(job: Callable[[], Any]) -> Forked:
    """Start a job; its process, and where its result can be read."""
    answer, into = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=lambda: into.send(job()), daemon=True)
    process.start()
    into.close()
    return process, answer


def result(forked: Forked) -> Any:
    """What a job returns; `FAILED` if it raised, `KILLED` if it was killed before its end."""
    process, answer = forked
    try:
        found = answer.recv()
    except EOFError:
        found = FAILED
    process.join()
    return KILLED if process.exitcode == -signal.SIGKILL else found
