"""The right to write to a slot: held by one process on any machine, lost when it stops renewing it.

A writer enters the record (serving/pointer.py) with a fencing token and an expiry, and renews it
from a thread. When it is paused for longer, another may take the slot. Then the token in the record
is another one, and whatever the first still sends must not arrive: it looks at the record whenever
it has not done so for a while and after each connect, and its connections bear its token, so that
the one that takes the slot closes them at the server. A chunk that is sent after the look goes
through such a connection.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path

import redis

from sda_features.errors import FeatureStoreError, OnlineStoreError
from sda_features.online.pipelines import nodes_of
from sda_features.serving.connection import RedisAddress
from sda_features.serving.pointer import Pointer, Writer, move_pointer, whoami

logger = logging.getLogger(__name__)

SECONDS = 30.0  # without a renewal, until another may take the slot
TIMEOUT = 10.0  # seconds for a reply; a busy server that loads a catalogue may take a while
RETRIES = 6  # of a command whose connection breaks, some seconds in all: a failover takes as long

Choose = Callable[[Pointer, float], int]


class LeaseLost(FeatureStoreError):
    """Another writer has taken the slot."""


class Lease:
    """One slot, for this process.

    Attributes:
        writer: what the record says of it.
        client: a client whose connections the next holder of the slot closes; write through it only.
    """

    def __init__(self, server: redis.Redis, key: bytes, address: RedisAddress, writer: Writer) -> None:
        self.writer = writer
        self.client = address.connect(timeout=TIMEOUT, retries=RETRIES, name=_connection_name(writer))
        self.began_to_write = False
        self._server, self._key = server, key
        self._lost = False
        self._looked = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="sda-lease", daemon=True)
        self._thread.start()

    def check(self, *, connected: bool = False) -> None:
        """Call before each write, with `connected` when its connection is new.

        Raises:
            LeaseLost: the slot belongs to another writer.
        """
        self.began_to_write = True
        if self._lost or connected or time.monotonic() - self._looked > SECONDS / 3:
            self._renew()

    def expect(self, record: Pointer) -> Writer:
        """The entry of this writer in a record.

        Raises:
            LeaseLost: the slot belongs to another writer.
        """
        held = record.writers.get(self.writer.slot)
        if held is not None and held.token == self.writer.token:
            return held
        self._lost = True
        taken = "another run has used it since"
        if held:
            taken = f"{held.owner} writes version {held.version} there now"
        raise LeaseLost(
            f"This run held slot {self.writer.slot} for version {self.writer.version} and was not heard of "
            f"for longer than {SECONDS:g} s; {taken}. It has stopped. If that is not wanted, end the other "
            "run and run again; what is finished is not done twice."
        )

    def close(self, *, incomplete: bool) -> None:
        """Let go of the slot; it stays marked if it may hold rows of a version that is not recorded."""
        self._stopped.set()
        self._thread.join()
        self.client.close()
        _ended.add(self.writer.token)

        def release_slot(record: Pointer) -> Pointer:
            held = record.writers.get(self.writer.slot)
            if held is None or held.token != self.writer.token:
                return record
            if incomplete and record.slot_of(self.writer.version) != self.writer.slot:
                return record.with_writer(replace(held, expires=0))
            return record.without_writer(self.writer.slot)

        with contextlib.suppress(redis.RedisError):  # it expires by itself
            move_pointer(self._server, self._key, release_slot)

    def _renew(self) -> None:
        def extend(record: Pointer, now: float) -> Pointer:
            return record.with_writer(replace(self.expect(record), expires=now + SECONDS))

        move_pointer(self._server, self._key, extend, timed=True)
        self._looked = time.monotonic()

    def _keep(self) -> None:
        while not self._stopped.wait(SECONDS / 3):
            try:
                self._renew()
            except LeaseLost:
                return  # the next `check` says so
            except (redis.RedisError, OnlineStoreError) as error:
                logger.warning("The lease of slot %d was not renewed: %s", self.writer.slot, error)


_ended: set[int] = set()  # tokens of this process; the record may not know when the server was away
_current: ContextVar[Lease | None] = ContextVar("lease", default=None)


def current_lease() -> Lease | None:
    """The lease of the block that runs, for writers that Feast calls."""
    return _current.get()


@contextlib.contextmanager
def leased(
    server: redis.Redis, key: bytes, address: RedisAddress, version: str, choose: Choose
) -> Iterator[Lease]:
    """Hold a slot while the block runs.

    Args:
        server: the online store.
        key: key of the record.
        address: where the online store is.
        version: what will be written, or deleted.
        choose: the slot, given the record and the server's clock; it raises if there is none.

    Raises:
        FeatureStoreError: another run holds the slot.
    """
    owner = whoami()
    before: Writer | None = None
    writer = Writer(version, 0, 0, owner, 0)

    def claim(record: Pointer, now: float) -> Pointer:
        nonlocal writer, before
        slot = choose(record, now)
        before = record.writers.get(slot)
        if before and before.expires > now and not _is_dead(before):
            raise FeatureStoreError(
                f"Another run is writing version {before.version} to slot {slot}: {before.owner}. Wait until it has "
                "ended and run again; what it has finished is not done twice. If it is dead, the slot is free in "
                f"{before.expires - now:.0f} s."
            )
        token = max([int(now * 1e6), *(held.token + 1 for held in record.writers.values())])
        writer = Writer(version, slot, token, owner, now + SECONDS, _place())
        return record.with_writer(writer)

    move_pointer(server, key, claim, f"write {version}", timed=True)
    if before is not None:
        _close_connections(server, _connection_name(before))
    lease = Lease(server, key, address, writer)
    token = _current.set(lease)
    try:
        yield lease
    finally:
        _current.reset(token)
        lease.close(incomplete=lease.began_to_write or before is not None)


def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""  # not Linux: a dead writer's lease ends by itself


def _is_dead(writer: Writer) -> bool:
    """Whether a writer of this process has let go, or its process ran here and has ended."""
    if writer.token in _ended:
        return True
    if not writer.place or writer.place != _place():
        return False
    try:
        os.kill(int(writer.owner.rpartition(":")[2]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _connection_name(writer: Writer) -> str:
    return f"sda-writer-{writer.token}"


def _close_connections(server: redis.Redis, name: str) -> None:
    """Close what an earlier writer has left open at the server, or at each node of a cluster."""
    for node in nodes_of(server).values():
        try:
            for client in node.client_list():
                if client.get("name") == name:
                    node.client_kill_filter(_id=client["id"])
        except redis.exceptions.NoPermissionError:
            logger.warning(
                "The connections of an earlier writer cannot be closed: the user lacks CLIENT LIST and CLIENT KILL. "
                "Make sure that its process has ended."
            )
