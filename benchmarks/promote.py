"""Two versions promoted back and forth under reading processes: every answer is counted and checked.

A result that holds vectors of both versions, another vector than was written, or no vector at all for
a stored item counts as torn. The plain contender looks at the record ten times a second and reads vectors
without a second look, as services read a setting: it shows that the test can fail.
"""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.synchronize import Event
from typing import Any

import numpy as np
from common import options, percentile, report

from sda_features.errors import SDAError
from sda_features.serving import EmbeddingClient, codec, layout
from sda_features.serving.connection import RedisAddress
from sda_features.serving.embedded import embedded_redis
from sda_features.serving.pointer import Pointer, StoredVersion, move_pointer, pointer_key, read_pointer

PROJECT, DIM, ITEMS, REQUEST = "promote", 64, 1000, 200
IDS = [f"item{number}" for number in range(ITEMS)]
POLL = 0.1  # seconds
VERSIONS = {"a" * 12: 1, "b" * 12: 2}  # version -> slot
NEXT = {"a" * 12: "c" * 12, "b" * 12: "d" * 12}  # what a slot holds after it has been written over


def vectors(version: str) -> np.ndarray:
    """What every item of a version holds, [ITEMS, DIM]."""
    return np.random.default_rng(int(version, 16) % 2**32).normal(size=(ITEMS, DIM)).astype(np.float32)


def write(server: Any, version: str, slot: int) -> None:
    """Fill a slot as Feast does."""
    view = layout.view_name("sda", slot)
    fields = [layout.hash_field(view, feature) for feature in layout.FEATURES]
    stamp = codec.encode_timestamp(int(time.time()))
    with server.pipeline(transaction=False) as pipeline:
        values = codec.encode_vectors(vectors(version))
        for key, value in zip(layout.redis_keys(IDS, project=PROJECT), values, strict=True):
            row = dict(zip(fields, (value, value, codec.encode_string(version)), strict=True))
            pipeline.hset(key, mapping={**row, layout.timestamp_field(view): stamp})
        pipeline.execute()


def clear(server: Any, slot: int) -> None:
    """Empty a slot."""
    view = layout.view_name("sda", slot)
    fields = [layout.hash_field(view, feature) for feature in layout.FEATURES]
    with server.pipeline(transaction=False) as pipeline:
        for key in layout.redis_keys(IDS, project=PROJECT):
            pipeline.execute_command("HDEL", key, *fields, layout.timestamp_field(view))
        pipeline.execute()


def read(port: int, careful: bool, stop: Event, answers: Any) -> None:
    """Read until stopped; put (reads, torn, refused, versions seen, milliseconds)."""
    expected = {version: vectors(version) for version in [*VERSIONS, *NEXT.values()]}
    address = RedisAddress("127.0.0.1", port)
    reads = torn = refused = 0
    seen: set[str] = set()
    reasons: set[str] = set()
    times: list[float] = []
    with EmbeddingClient(address, project=PROJECT) as client, address.connect(timeout=5) as server:
        key = pointer_key(PROJECT, "sda")
        plain = {
            slot: EmbeddingClient(server, project=PROJECT, view=layout.view_name("sda", slot))
            for slot in VERSIONS.values()
        }
        turn, slot, looked = 0, 1, float("-inf")
        while not stop.is_set():
            start = turn * 37 % (ITEMS - REQUEST)
            turn += 1
            ids = IDS[start : start + REQUEST]
            began = time.perf_counter()
            try:
                if careful:
                    found = client.get(ids)
                else:
                    if began - looked > POLL:
                        slot, looked = read_pointer(server, key).slot_of() or 1, began
                    found = plain[slot].get(ids)
            except SDAError as error:
                refused += 1
                reasons.add(str(error))
                continue
            times.append(1e3 * (time.perf_counter() - began))
            reads += 1
            names = set(found.versions)
            version = next(iter(names - {None}), None)
            seen |= names - {None}  # type: ignore[arg-type]
            right = len(names) == 1 and version and found.text_found.all()
            torn += not (
                right and np.array_equal(found.text, expected[str(version)][start : start + REQUEST])
            )
    answers.put((reads, torn, refused, seen, times, reasons))


def trial(server: Any, port: int, readers: int, seconds: float, *, careful: bool) -> dict[str, Any]:
    """Promote for some seconds under readers; a version that is not live is emptied and written anew."""
    spawn = multiprocessing.get_context("spawn")
    stop, answers = spawn.Event(), spawn.Queue()
    key = pointer_key(PROJECT, "sda")
    server.flushall()
    held = {slot: version for version, slot in VERSIONS.items()}
    pointer = Pointer()
    for version, slot in VERSIONS.items():
        write(server, version, slot)
        pointer = pointer.with_version(StoredVersion(version, slot, ITEMS, DIM, "float32", ""))
    live = 1
    move_pointer(server, key, lambda _: pointer.promoted(held[1]))
    processes = [spawn.Process(target=read, args=(port, careful, stop, answers)) for _ in range(readers)]
    for process in processes:
        process.start()
    promoted = rewritten = 0
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        live = 3 - live
        move_pointer(server, key, lambda record: record.promoted(held[live]))  # noqa: B023
        promoted += 1
        if promoted % 11:
            time.sleep(0.02)
        else:  # prune the other slot at once, and materialise another version into it
            old = held[3 - live]
            move_pointer(server, key, lambda record: record.without_version(old))  # noqa: B023
            clear(server, 3 - live)
            new = NEXT.get(old) or next(v for v, follower in NEXT.items() if follower == old)
            write(server, new, 3 - live)
            held[3 - live] = new
            stored = StoredVersion(new, 3 - live, ITEMS, DIM, "float32", str(promoted))
            move_pointer(server, key, lambda record: record.with_version(stored))  # noqa: B023
            rewritten += 1
    stop.set()
    results = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    times = [value for *_, taken, _ in results for value in taken]
    return {
        "reads": sum(reads for reads, *_ in results),
        "torn": sum(torn for _, torn, *_ in results),
        "refused": sum(refused for _, _, refused, *_ in results),
        "versions_seen": len(set.union(*(seen for *_, seen, _, _ in results))),
        "reasons": sorted(set.union(*(reasons for *_, reasons in results))),
        "promoted": promoted,
        "rewritten": rewritten,
        "p50_ms": round(percentile(times, 0.5), 2),
        "p99_ms": round(percentile(times, 0.99), 2),
    }


def main() -> None:
    """Measure and print."""
    arguments = options(
        __doc__ or "",
        ("--seconds", {"type": float, "help": "default 60"}),
        ("--readers", {"type": int, "default": 8, "help": "processes"}),
    )
    seconds = arguments.seconds or (8.0 if arguments.quick else 60.0)
    with embedded_redis() as (host, port), RedisAddress(host, port).connect(timeout=10) as server:
        ours = trial(server, port, arguments.readers, seconds, careful=True)
        plain = trial(server, port, arguments.readers, min(seconds, 10.0), careful=False)
    print(
        f"{'':<18}{'reads':>10}{'torn':>8}{'refused':>9}{'promoted':>10}{'rewritten':>11}{'p50 ms':>8}{'p99 ms':>8}"
    )
    for name, figures in {"EmbeddingClient": ours, "polled record": plain}.items():
        columns = ("reads", "torn", "refused", "promoted", "rewritten", "p50_ms", "p99_ms")
        widths = (10, 8, 9, 10, 11, 8, 8)
        cells = "".join(f"{figures[column]:>{width}}" for column, width in zip(columns, widths, strict=True))
        print(f"{name:<18}{cells}")
    assert ours["torn"] == 0, "a result was torn"
    report(
        "promote",
        against="a client that polls the record",
        ratio=plain["p50_ms"] / ours["p50_ms"],
        seconds=seconds,
        ours=ours,
        polled=plain,
    )


if __name__ == "__main__":
    main()
