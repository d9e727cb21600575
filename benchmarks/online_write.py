"""Item vectors from parquet into Redis: the fast engine and `materialize_view`, stock Feast, raw bytes.

All read the same parts and write 2 vectors an item. The floor of that is reading the parts as Arrow
and SET of the same values, packed beforehand and sent on one connection; writing alone is held
against SET alone. Each contender has a server of its own, emptied before every
turn. Hashes are compared byte for byte before anything is timed.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import contextlib
import tempfile
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import redis
from common import median, options, paired_ratio, peak_memory, report, take_turns

from sda_features.feature_store.definitions import embedding_source, embedding_view, item_entity
from sda_features.feature_store.repo import open_feature_set, quiet_feast
from sda_features.feature_store.to_online import materialize_view
from sda_features.offline.parts import write_part
from sda_features.offline.schema import vectors_table
from sda_features.online.commands import argument
from sda_features.online.writer import OnlineView, write_batches
from sda_features.serving import codec
from sda_features.serving.embedded import embedded_redis
from sda_features.serving.layout import FEATURES

ENGINE = "sda_features.feast_plugins.engine.VectorEngine"
EPOCH, NOON = datetime(1970, 1, 1, tzinfo=UTC), datetime(2024, 5, 1, 12, tzinfo=UTC)
VIEW_OF_ITEMS = OnlineView("shop", "sda_item_embeddings", FEATURES)
COLUMNS = ["item_id", *FEATURES, "event_timestamp"]
PIPELINE = 512  # SETs in one send of the floor; two sends are on their way
STOCK, FAST, VIEW, FLOOR = "stock feast materialize", "VectorEngine", "materialize_view", "raw SET"
WRITE, READ = "write_batches, from memory", "pq.read_table"  # where the time of the engine goes


def main() -> None:
    """Measure and print."""
    arguments = options(
        __doc__ or "",
        ("--items", {"type": int, "help": "items"}),
        ("--dim", {"type": int, "default": 1024, "help": "dimension of the vectors"}),
        ("--rounds", {"type": int, "help": "timed rounds"}),
    )
    items = arguments.items or (2_000 if arguments.quick else 10_000)
    rounds = arguments.rounds or (3 if arguments.quick else 7)
    vectors = np.random.default_rng(0).normal(size=(2, items, arguments.dim)).astype(np.float32)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {
            name: redis.Redis(*stack.enter_context(embedded_redis()))
            for name in (STOCK, FAST, VIEW, FLOOR, WRITE)
        }
        stores = {
            STOCK: make_repo(folder, "stock", servers[STOCK], "local", vectors),
            FAST: make_repo(folder, "fast", servers[FAST], ENGINE, vectors),
            VIEW: make_repo(folder, "view", servers[VIEW], "local", vectors),
        }
        part = next((stores[FAST] / "data" / "sda").glob("*.parquet"))
        rows = pq.read_table(part, columns=COLUMNS)
        jobs = {
            STOCK: lambda: materialize(stores[STOCK]),
            FAST: lambda: materialize(stores[FAST]),
            VIEW: lambda: materialize_view(stores[VIEW], "sda"),
            FLOOR: raw_sets(servers[FLOOR], vectors),
            WRITE: partial(write_batches, servers[WRITE], VIEW_OF_ITEMS, rows.to_batches()),
            READ: lambda: pq.read_table(part, columns=COLUMNS),
        }
        for name in (STOCK, FAST, VIEW, WRITE):
            jobs[name]()
        compare(servers, items)
        emptied: dict[str, Callable[[], object]] = {}
        for name, job in jobs.items():
            if name in servers:
                emptied[f"empty {name}"] = partial(servers[name].execute_command, "FLUSHALL", "SYNC")
            emptied[name] = job
        seconds = take_turns(emptied, rounds=rounds)
    print(
        f"\n{items} items x 2 vectors x {arguments.dim} float32, {rounds} rounds in turns, {os.cpu_count()} cores"
    )
    print(f"{'':26} {'median s':>9} {'best s':>9} {'/ SET':>9} {'stock /':>9}")
    for name in jobs:
        over, under = paired_ratio(seconds[name], seconds[FLOOR]), paired_ratio(seconds[STOCK], seconds[name])
        print(f"{name:26} {median(seconds[name]):9.3f} {min(seconds[name]):9.3f} {over:9.2f} {under:9.2f}")
    report(
        "online_write",
        against=f"feast {version('feast')} materialize, engine local",
        ratio=paired_ratio(seconds[STOCK], seconds[FAST]),
        floor_ratio=paired_ratio(
            seconds[FAST], list(map(sum, zip(seconds[READ], seconds[FLOOR], strict=True)))
        ),
        write_only_floor_ratio=round(paired_ratio(seconds[WRITE], seconds[FLOOR]), 3),
        whole_over_set_alone=round(paired_ratio(seconds[FAST], seconds[FLOOR]), 3),
        materialize_view_ratio=round(paired_ratio(seconds[STOCK], seconds[VIEW]), 3),
        items=items,
        dim=arguments.dim,
        identical_hashes=True,
        peak_bytes=peak_memory(),
    )


def make_repo(folder: Path, name: str, server: redis.Redis, engine: str, vectors: np.ndarray) -> Path:
    """An applied repo with one part of `vectors` [2, n, d]."""
    from feast import FeatureStore

    repo = folder / name
    repo.mkdir()
    address = server.connection_pool.connection_kwargs
    (repo / "feature_store.yaml").write_text(
        "project: shop\nprovider: local\nregistry: data/registry.db\n"
        f"online_store: {{type: redis, connection_string: '{address['host']}:{address['port']}'}}\n"
        f"batch_engine: {{type: {engine}}}\n"
    )
    item = item_entity()
    source = embedding_source("sda", "data/sda", item)
    with quiet_feast():
        FeatureStore(repo_path=str(repo)).apply([item, source, embedding_view("sda", source, item)])
    text, image = vectors
    found = np.ones(len(text), np.bool_)
    table = vectors_table(
        item_ids(len(text)),
        text=text,
        text_found=found,
        image=image,
        image_found=found,
        adapter_version="0123456789ab",
        content_hashes=item_ids(len(text)),
        event_timestamp=NOON,
    )
    write_part(open_feature_set(repo, "sda").folder, table)
    return repo


def materialize(repo: Path) -> None:
    """`feast materialize` of the view, in this process."""
    with quiet_feast():
        from feast import FeatureStore

        store = FeatureStore(repo_path=str(repo))
        store.materialize(EPOCH, datetime.now(UTC), feature_views=["sda_item_embeddings"])


def raw_sets(server: redis.Redis, vectors: np.ndarray) -> Callable[[], None]:
    """The floor: SET of every encoded vector. Commands are packed here, not in the job."""
    commands = [
        b"*3\r\n$3\r\nSET" + argument(b"%d %b" % (modality, item_id.encode())) + argument(value) + b"\r\n"
        for modality, matrix in enumerate(vectors)
        for item_id, value in zip(item_ids(len(matrix)), codec.encode_vectors(matrix), strict=True)
    ]
    sends = [commands[start : start + PIPELINE] for start in range(0, len(commands), PIPELINE)]
    packed = [(b"".join(send), len(send)) for send in sends]

    def run() -> None:
        connection = server.connection_pool.get_connection()
        waiting: deque[int] = deque()
        for data, replies in [*packed, (b"", 0), (b"", 0)]:
            connection.send_packed_command([data] if data else [])
            waiting.append(replies)
            if len(waiting) > 2:
                for _ in range(waiting.popleft()):
                    connection.read_response()
        server.connection_pool.release(connection)

    return run


def compare(servers: dict[str, redis.Redis], items: int) -> None:
    """Every hash of stock Feast must be in the other servers, byte for byte, and nothing else."""
    stock = servers[STOCK]
    keys = sorted(stock.keys())
    assert len(keys) == items
    for name in (FAST, VIEW, WRITE):
        assert sorted(servers[name].keys()) == keys, name
        for start in range(0, items, 500):
            found = []
            for server in (stock, servers[name]):
                with server.pipeline(transaction=False) as pipeline:
                    for key in keys[start : start + 500]:
                        pipeline.hgetall(key)
                    found.append(pipeline.execute())
            assert found[0] == found[1], name


def item_ids(count: int) -> list[str]:
    """Ids of the items."""
    return [f"item-{number:08d}" for number in range(count)]


if __name__ == "__main__":
    main()
