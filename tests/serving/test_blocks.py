"""Replies as one block: whatever differs from the expectation, the result is that of redis-py's pipeline."""

import time

import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from sda_features.errors import FeatureMismatchError
from sda_features.serving import codec, layout
from sda_features.serving.blocks import Block
from sda_features.serving.reading import Reader
from sda_features.serving.wire import DeadlineExceeded, fetch_fields
from tests.reference import redis_layout as reference
from tests.serving.stored import assert_same, one_connection, piped, put

FIELDS = [b"a", b"b"]
SIZES = (3, 12)
VALUES = [b"\r\n$", b"*2\r\n$3\r\nabc\r"]  # of these sizes, and made to be mistaken for framing
HASHES = {
    "alike": VALUES,
    "longer": [VALUES[0], VALUES[1] + b"12"],
    "shorter": [b"", VALUES[1]],
    "half": VALUES[:1],
}


@pytest.fixture(scope="module")
def impatient(url):
    """Waiting for bytes that do not come would end in a time-out."""
    with one_connection(url, socket_timeout=2, retries=0) as client:
        yield client


def write(server, kinds):
    """One key for each kind of hash, or a string, or nothing; returns the keys."""
    keys = [f"block:{number}".encode() for number in range(len(kinds))]
    with server.pipeline(transaction=False) as pipeline:
        pipeline.delete(*keys)
        for key, kind in zip(keys, kinds, strict=True):
            if kind == "string":
                pipeline.set(key, "x")
            elif kind != "absent":
                pipeline.hset(key, mapping=dict(zip(FIELDS, HASHES[kind], strict=False)))
        pipeline.execute()
    return keys


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_replies_that_are_alike_become_a_block(server, impatient, count):
    keys = write(server, ["alike"] * count)
    block, record = fetch_fields(impatient, keys, FIELDS, SIZES, record_key=keys[0] + b"?")
    assert isinstance(block, Block)
    assert (len(block), record) == (count, None)
    assert list(block) == piped(server, keys, FIELDS)
    assert block.column(1).tobytes() == VALUES[1] * count


kinds = st.sampled_from(["alike"] * 9 + ["longer", "shorter", "half", "absent"])


@settings(deadline=None, max_examples=60)
@given(kinds=st.lists(kinds, min_size=1, max_size=60), repeat=st.sampled_from([1, 7, 40]))
def test_others_are_what_a_pipeline_returns(server, impatient, kinds, repeat):
    keys = write(server, kinds) * repeat
    rows, record = fetch_fields(impatient, keys, FIELDS, SIZES, record_key=b"block:record")
    assert isinstance(rows, Block) == (set(kinds) == {"alike"})
    assert list(rows) == piped(server, keys, FIELDS)
    assert record is None


@pytest.mark.parametrize("position", [0, 3, 499, 999])
@pytest.mark.parametrize("kind", ["longer", "shorter", "half", "absent"])
def test_one_that_differs(server, impatient, position, kind):
    keys = write(server, ["alike"] * position + [kind] + ["alike"] * (999 - position))
    rows, _ = fetch_fields(impatient, keys, FIELDS, SIZES)
    assert rows == piped(server, keys, FIELDS)


def test_as_many_absent_as_make_up_whole_replies(server, impatient):
    """14 bytes a reply instead of 34: 17 absent ones take the room of 7 others."""
    for before, after in ((0, 0), (5, 0), (5, 40), (0, 1)):
        keys = write(server, ["alike"] * before + ["absent"] * 17 + ["alike"] * after)
        rows, _ = fetch_fields(impatient, keys, FIELDS, SIZES)
        assert rows == piped(server, keys, FIELDS)


@pytest.mark.parametrize("sizes", [(3, 11), (12, 3), (3,), (3, 12, 1), (0, 0)])
def test_a_wrong_expectation(server, impatient, sizes):
    keys = write(server, ["alike"] * 50)
    rows, _ = fetch_fields(impatient, keys, FIELDS, sizes)
    assert rows == piped(server, keys, FIELDS)


def test_an_error_among_them_leaves_the_connection_usable(server, impatient):
    keys = write(server, ["alike"] * 30 + ["string"] + ["alike"] * 30)
    before = impatient.client_id()
    with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
        fetch_fields(impatient, keys, FIELDS, SIZES, record_key=b"block:record")
    assert isinstance(fetch_fields(impatient, keys[:30], FIELDS, SIZES)[0], Block)
    assert impatient.client_id() == before


@pytest.mark.parametrize("options", [{"protocol": 3}, {"parser_class": redis._parsers._RESP2Parser}], ids=str)
def test_without_hiredis_or_with_pushed_messages_there_are_no_blocks(server, url, options):
    keys = write(server, ["alike"] * 30)
    with one_connection(url, **options) as client:
        assert fetch_fields(client, keys, FIELDS, SIZES)[0] == piped(server, keys, FIELDS)


def test_faults_while_a_block_is_expected(server, impatient, monkeypatch):
    keys = write(server, ["alike"] * 30)
    fetch_fields(impatient, keys, FIELDS, SIZES)
    server.client_pause(400)
    with pytest.raises(DeadlineExceeded):
        fetch_fields(impatient, keys, FIELDS, SIZES, deadline=time.monotonic() + 0.05)
    server.client_unpause()
    ends = time.monotonic() + 60
    assert isinstance(fetch_fields(impatient, keys, FIELDS, SIZES, deadline=ends)[0], Block)
    connection = impatient.connection_pool.get_connection()
    assert connection._sock.gettimeout() == 2  # its own again
    connection.send_command("CLIENT ID")
    server.client_kill_filter(_id=connection.read_response())
    monkeypatch.setattr(impatient.connection_pool, "get_connection", lambda: connection)
    with pytest.raises(redis.exceptions.ConnectionError):
        fetch_fields(impatient, keys, FIELDS, SIZES)
    monkeypatch.undo()
    assert isinstance(fetch_fields(impatient, keys, FIELDS, SIZES)[0], Block)


# --- what the client makes of blocks ---------------------------------------------------------------


@pytest.fixture
def project(server, new_project):
    project = new_project()
    for number in range(20):
        put(server, project, str(number), [number] * 3, [-number] * 3, at=1_700_000_000 + number // 10)
    return project


IDS = [str(number) for number in range(20)]


@pytest.fixture
def blocks(monkeypatch):
    """How many results the client made of a block so far."""
    made = []
    whole = Reader._decode_block

    def counted(self, ids, block, place):
        found = whole(self, ids, block, place)
        made.append(found is not None)
        return found

    monkeypatch.setattr(Reader, "_decode_block", counted)
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


def test_what_changes_between_two_reads_is_seen(server, project, client, blocks):
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
def test_smaller_vectors(server, project, client, dtype, blocks):
    matrix = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    fields = [layout.hash_field(client.view, name) for name in (layout.TEXT, layout.IMAGE)]
    values = codec.encode_vectors(matrix, dtype=dtype)
    for key, value in zip(layout.redis_keys(IDS, project=project), values, strict=True):
        server.hset(key, mapping=dict.fromkeys(fields, value))
    assert_same(client.get(IDS), client.get(IDS))
    assert blocks == [True]
