"""Replies as one block: whatever differs from the expectation, the result is that of redis-py's pipeline."""

import time

import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.backoff import NoBackoff
from redis.retry import Retry

from sda_features.errors import FeatureMismatchError
from sda_features.serving import EmbeddingClient, codec, layout
from sda_features.serving import client as client_module
from sda_features.serving.blocks import Block
from sda_features.serving.wire import DeadlineExceeded, fetch_sized
from tests.reference import redis_layout as reference

FIELDS = [b"a", b"b"]
SIZES = (3, 12)
VALUES = [b"\r\n$", b"*2\r\n$3\r\nabc\r"]  # of these sizes, and made to be mistaken for framing


@pytest.fixture(scope="module")
def impatient(redis_server):
    """Waiting for bytes that do not come would end in a time-out."""
    pool = redis.ConnectionPool(
        host=redis_server[0],
        port=redis_server[1],
        max_connections=1,
        socket_timeout=2,
        retry=Retry(NoBackoff(), 0),
    )
    with redis.Redis.from_pool(pool) as client:
        yield client


def write(server, kinds):
    """One key for each kind of hash; returns the keys."""
    keys = [f"block:{number}".encode() for number in range(len(kinds))]
    with server.pipeline(transaction=False) as pipeline:
        if keys:
            pipeline.delete(*keys)
        for key, kind in zip(keys, kinds, strict=True):
            match kind:
                case "alike":
                    pipeline.hset(key, mapping=dict(zip(FIELDS, VALUES, strict=True)))
                case "longer":
                    pipeline.hset(key, mapping={FIELDS[0]: VALUES[0], FIELDS[1]: VALUES[1] + b"12"})
                case "shorter":
                    pipeline.hset(key, mapping={FIELDS[0]: b"", FIELDS[1]: VALUES[1]})
                case "half":
                    pipeline.hset(key, FIELDS[0], VALUES[0])
                case "string":
                    pipeline.set(key, "x")
        pipeline.execute()
    return keys


def oracle(server, keys):
    with server.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.hmget(key, FIELDS)
        return pipeline.execute()


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_replies_that_are_alike_become_a_block(server, impatient, count):
    keys = write(server, ["alike"] * count)
    block, record = fetch_sized(impatient, keys, FIELDS, SIZES, record_key=keys[0] + b"?")
    assert isinstance(block, Block)
    assert (len(block), record) == (count, None)
    assert block.rows() == oracle(server, keys)
    assert block.column(1).tobytes() == VALUES[1] * count


kinds = st.sampled_from(["alike"] * 9 + ["longer", "shorter", "half", "absent"])


@settings(deadline=None, max_examples=60)
@given(kinds=st.lists(kinds, min_size=1, max_size=60), repeat=st.sampled_from([1, 7, 40]))
def test_others_are_what_a_pipeline_returns(server, impatient, kinds, repeat):
    keys = write(server, kinds) * repeat
    rows, record = fetch_sized(impatient, keys, FIELDS, SIZES, record_key=b"block:record")
    assert isinstance(rows, Block) == (set(kinds) == {"alike"})
    assert (rows.rows() if isinstance(rows, Block) else rows) == oracle(server, keys)
    assert record is None


@pytest.mark.parametrize("position", [0, 3, 499, 999])
@pytest.mark.parametrize("kind", ["longer", "shorter", "half", "absent"])
def test_one_that_differs(server, impatient, position, kind):
    keys = write(server, ["alike"] * position + [kind] + ["alike"] * (999 - position))
    rows, _ = fetch_sized(impatient, keys, FIELDS, SIZES)
    assert rows == oracle(server, keys)


def test_as_many_absent_as_make_up_whole_replies(server, impatient):
    """14 bytes a reply instead of 34: 17 absent ones take the room of 7 others."""
    for before, after in ((0, 0), (5, 0), (5, 40), (0, 1)):
        keys = write(server, ["alike"] * before + ["absent"] * 17 + ["alike"] * after)
        rows, _ = fetch_sized(impatient, keys, FIELDS, SIZES)
        assert rows == oracle(server, keys)


@pytest.mark.parametrize("sizes", [(3, 11), (12, 3), (3,), (3, 12, 1), (0, 0)])
def test_a_wrong_expectation(server, impatient, sizes):
    keys = write(server, ["alike"] * 50)
    rows, _ = fetch_sized(impatient, keys, FIELDS, sizes)
    assert rows == oracle(server, keys)


def test_an_error_among_them_leaves_the_connection_usable(server, impatient):
    keys = write(server, ["alike"] * 30 + ["string"] + ["alike"] * 30)
    before = impatient.client_id()
    with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
        fetch_sized(impatient, keys, FIELDS, SIZES, record_key=b"block:record")
    assert isinstance(fetch_sized(impatient, keys[:30], FIELDS, SIZES)[0], Block)
    assert impatient.client_id() == before


@pytest.mark.parametrize("options", [{"protocol": 3}, {"parser_class": redis._parsers._RESP2Parser}], ids=str)
def test_without_hiredis_or_with_pushed_messages_there_are_no_blocks(server, redis_server, options):
    keys = write(server, ["alike"] * 30)
    with redis.Redis.from_pool(
        redis.ConnectionPool(host=redis_server[0], port=redis_server[1], **options)
    ) as client:
        assert fetch_sized(client, keys, FIELDS, SIZES)[0] == oracle(server, keys)


def test_faults_while_a_block_is_expected(server, impatient):
    keys = write(server, ["alike"] * 30)
    fetch_sized(impatient, keys, FIELDS, SIZES)
    server.client_pause(400)
    with pytest.raises(DeadlineExceeded):
        fetch_sized(impatient, keys, FIELDS, SIZES, deadline=time.monotonic() + 0.05)
    server.client_unpause()
    ends = time.monotonic() + 60
    assert isinstance(fetch_sized(impatient, keys, FIELDS, SIZES, deadline=ends)[0], Block)
    connection = impatient.connection_pool.get_connection()
    assert connection._sock.gettimeout() == 2  # its own again
    connection.send_command("CLIENT ID")
    server.client_kill_filter(_id=connection.read_response())
    impatient.connection_pool.get_connection, usual = (
        lambda: connection,
        impatient.connection_pool.get_connection,
    )
    try:
        with pytest.raises(redis.exceptions.ConnectionError):
            fetch_sized(impatient, keys, FIELDS, SIZES)
    finally:
        impatient.connection_pool.get_connection = usual
    assert isinstance(fetch_sized(impatient, keys, FIELDS, SIZES)[0], Block)


# --- what the client makes of blocks ---------------------------------------------------------------


@pytest.fixture
def project(server, new_project, put):
    project = new_project()
    for number in range(20):
        put(server, project, str(number), [number] * 3, [-number] * 3, at=1_700_000_000 + number // 10)
    return project


@pytest.fixture
def client(redis_server, project):
    with EmbeddingClient("redis://{}:{}".format(*redis_server), project=project) as client:
        yield client


IDS = [str(number) for number in range(20)]


def assert_same(left, right):
    assert (left.item_ids, left.versions) == (right.item_ids, right.versions)
    for name in ("text", "text_found", "image", "image_found", "event_times"):
        assert getattr(left, name).dtype == getattr(right, name).dtype
        assert getattr(left, name).tobytes() == getattr(right, name).tobytes()


@pytest.fixture
def blocks(monkeypatch):
    """How many results the client made of a block so far."""
    made = []
    whole = client_module.Reader._decode_block

    def counted(self, ids, block, place):
        found = whole(self, ids, block, place)
        made.append(found is not None)
        return found

    monkeypatch.setattr(client_module.Reader, "_decode_block", counted)
    return made


def test_the_second_read_is_a_block_with_the_same_result(client, blocks):
    first = client.get(IDS)
    assert not blocks
    second = client.get(IDS)
    assert blocks == [True]
    assert_same(first, second)
    assert second.text[:, 0].tolist() == list(range(20))
    assert second.text.flags.c_contiguous
    assert second.text.flags.writeable
    assert len(set(second.event_times.tolist())) == 2
    assert client.get(["?", *IDS]).text_found.tolist() == [False] + [True] * 20
    assert blocks == [True]


def test_what_changes_between_two_reads_is_seen(server, project, client, put, blocks):
    client.get(IDS)
    put(server, project, "7", [1] * 3, [1] * 3, "v2", at=1_700_000_000)
    assert not client.get(IDS).text_found[7]  # a row of another version is one item not found
    put(server, project, "7", [1] * 4, [1] * 3, at=1_700_000_000)
    with pytest.raises(FeatureMismatchError, match="'7' has a vector of dimension 4, expected 3"):
        client.get(IDS)
    put(server, project, "7", [9] * 3, [9] * 3, at=1_700_000_000)
    client.get(IDS)
    assert client.get(IDS).text[7].tolist() == [9] * 3
    assert blocks[-1]
    with pytest.raises(FeatureMismatchError, match="'0' has vectors of adapter version 'v1', expected 'v2'"):
        client.get(IDS, "v2")
    # Numbers of the same length that are no vector.
    (key,) = layout.redis_keys(["3"], project=project)
    size = len(reference.vector([1] * 3))
    server.hset(key, layout.hash_field(client.view, layout.IMAGE), b"x" * size)
    with pytest.raises(FeatureMismatchError, match="Item '3': expected a vector"):
        client.get(IDS)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_smaller_vectors(server, new_project, redis_server, dtype, blocks):
    project, fields = (
        new_project(),
        [layout.hash_field("sda_item_embeddings", name) for name in layout.FEATURES],
    )
    matrix = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    values = codec.encode_vectors(matrix, dtype=dtype)
    for key, value in zip(layout.redis_keys(IDS, project=project), values, strict=True):
        row = dict(zip(fields, (value, value, codec.encode_string("v1")), strict=True))
        server.hset(
            key, mapping={**row, layout.timestamp_field("sda_item_embeddings"): codec.encode_timestamp(5)}
        )
    with EmbeddingClient("redis://{}:{}".format(*redis_server), project=project) as client:
        assert_same(client.get(IDS), client.get(IDS))
    assert blocks == [True]
