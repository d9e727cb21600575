"""Many hashes in one round trip: redis-py's own pipeline is the oracle; faults on a real server."""

import time

import pytest
import redis

from sda_features.serving.wire import CHUNK, DeadlineExceeded, borrowed, drain, fetch_fields
from tests.serving.stored import one_connection, piped

FIELDS = [b"\x00\r\n\xff", b"text", b"absent"]


@pytest.fixture(scope="module")
def keys(server):
    keys = [f"wire:{number}".encode() * (1 + number % 3) for number in range(2 * CHUNK + 3)]
    with server.pipeline(transaction=False) as pipeline:
        for number, key in enumerate(keys[:-1]):
            pipeline.hset(key, mapping={FIELDS[0]: b"x" * (number * 37), FIELDS[1]: f"\r\n{number}"})
        pipeline.set("wire:record", b"$5\r\nrecord")
        pipeline.set("wire:string", b"no hash")
        pipeline.execute()
    return keys


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"socket_read_size": 64},
        {"protocol": 3},
        {"parser_class": redis._parsers._RESP2Parser},
        {"health_check_interval": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("deadline", [None, 60])
def test_it_is_what_a_pipeline_returns(server, url, keys, options, deadline):
    ends = deadline and time.monotonic() + deadline
    expected = piped(server, keys, FIELDS)
    assert expected[-1] == [None] * 3
    assert len(expected[-2][0]) > 8192
    with one_connection(url, **options) as client:
        for count in (0, 1, CHUNK, len(keys)):
            found = fetch_fields(client, keys[:count], FIELDS, record_key=b"wire:record", deadline=ends)
            assert found == (expected[:count], b"$5\r\nrecord")
        assert fetch_fields(client, keys, FIELDS) == (expected, None)
        assert fetch_fields(client, [], FIELDS) == ([], None)


def test_replies_are_taken_from_hiredis_itself(server, url, keys):
    """Without this, a redis-py that moves its reader would make reads slow and leave tests green."""
    with one_connection(url) as client, borrowed(client.connection_pool) as connection:
        connection.send_packed_command([b"*2\r\n$3\r\nGET\r\n$11\r\nwire:record\r\n" * 3])
        assert connection.read_response() == b"$5\r\nrecord"
        received = drain(connection)()
        while len(received) < 2:
            received.append(connection.read_response())
            received += drain(connection)()
        assert received == [b"$5\r\nrecord"] * 2
        assert drain(connection) is not list
    with one_connection(url, protocol=3) as client, borrowed(client.connection_pool) as connection:
        assert drain(connection) is list


def test_a_key_that_is_no_hash_leaves_the_connection_usable(url, keys):
    with one_connection(url) as client:
        before = client.client_id()
        with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
            fetch_fields(client, [*keys[:3], b"wire:string", *keys[3:]], FIELDS)
        with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
            fetch_fields(client, [], FIELDS, record_key=keys[0])
        assert fetch_fields(client, keys[:2], FIELDS) == (piped(client, keys[:2], FIELDS), None)
        assert client.client_id() == before


def test_a_lost_connection_is_made_again(server, url, keys):
    with one_connection(url) as client:
        fetch_fields(client, keys, FIELDS)
        server.client_kill_filter(_id=client.client_id())
        assert fetch_fields(client, keys, FIELDS) == (piped(server, keys, FIELDS), None)
    with one_connection(url, retries=0) as client:
        connection = client.connection_pool.get_connection()
        connection.send_command("CLIENT ID")
        server.client_kill_filter(_id=connection.read_response())
        # Straight to the request: the pool would notice and connect again.
        client.connection_pool.get_connection = lambda: connection
        with pytest.raises(redis.exceptions.ConnectionError):
            fetch_fields(client, keys, FIELDS)


def test_a_server_that_answers_too_late(url, keys, server):
    with one_connection(url, socket_timeout=30) as client:
        fetch_fields(client, keys[:1], FIELDS)
        server.client_pause(400)
        try:
            with pytest.raises(DeadlineExceeded):
                fetch_fields(client, keys[:1], FIELDS, deadline=time.monotonic() + 0.05)
            with pytest.raises(DeadlineExceeded):
                fetch_fields(client, keys[:1], FIELDS, deadline=time.monotonic() - 1)
        finally:
            server.client_unpause()
        # The late reply is not taken for the answer to the next request.
        assert fetch_fields(client, keys[1:3], FIELDS) == (piped(server, keys[1:3], FIELDS), None)


def test_the_time_out_of_the_connection_holds_within_a_deadline(url, keys, server):
    with one_connection(url, socket_timeout=0.05, retries=0) as client:
        fetch_fields(client, keys[:1], FIELDS)
        server.client_pause(400)
        with pytest.raises(redis.exceptions.TimeoutError):
            fetch_fields(client, keys[:1], FIELDS, deadline=time.monotonic() + 60)
        server.client_unpause()
