"""Item vectors from Redis into float32 matrices: EmbeddingClient against stock Feast and against raw bytes.

python benchmarks/online_read.py [--quick]

Two vectors an item, written by stock Feast, on a Valkey on loopback that this script starts. Stock
Feast is asked for the two vectors alone, `get_online_features(...).to_dict()`, and its lists become
torch tensors; EmbeddingClient also reads version and time of each item, and checks them. The floor is
one MGET of the same numbers as plain strings with redis-py. All contenders take turns on one server;
what they return is compared before anything is timed.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import feast
import numpy as np
import pandas as pd
import redis
import torch
from common import median, options, percentile, report, take_turns
from tabulate import tabulate

from sda_features.feature_store.definitions import embedding_source, embedding_view, item_entity
from sda_features.feature_store.repo import quiet_feast
from sda_features.offline.schema import vectors_table
from sda_features.online.writer import OnlineView, write_batches
from sda_features.serving import EmbeddingClient, layout
from sda_features.serving.connection import RedisAddress
from sda_features.serving.embedded import embedded_redis

sys.path.insert(0, str(Path(__file__).parents[1]))  # the servers that the tests start
from tests.serving import servers

ITEMS = 1000
VERSION = "0123456789ab"
VECTORS = ("text_embedding", "image_embedding")
FEATURES = [f"sda_item_embeddings:{name}" for name in VECTORS]
DROP_IN = "sda_features.feast_plugins.online_store.VectorRedisOnlineStore"
IDS = [f"item-{number:06d}" for number in range(ITEMS)]
FULL_SIZES = [(count, dim) for dim in (256, 1024) for count in (100, 500, 1000)]
NAMED_SIZE = (500, 256)
Vectors = Sequence[np.ndarray]  # text and image, float32 [n, d]


@dataclass(frozen=True)
class Stored:
    """Where the vectors of one dimension are.

    Attributes:
        text, image: float32 [ITEMS, d], what was written.
        stores: name -> Feast store of the repo, stock and, where it can be imported, the drop-in.
        client: EmbeddingClient of the same Feast project.
        server: plain redis-py client.
    """

    text: np.ndarray
    image: np.ndarray
    stores: Mapping[str, feast.FeatureStore]
    client: EmbeddingClient
    server: redis.Redis


# --- writing -------------------------------------------------------------------------------------


@contextlib.contextmanager
def stored(dim: int, address: tuple[str, int]) -> Iterator[Stored]:
    """Write ITEMS items of dimension `dim` through stock Feast, and the same numbers as plain strings."""
    host, port = address
    text, image = np.random.default_rng(dim).normal(size=(2, ITEMS, dim)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder, redis.Redis(host, port) as server:
        project = f"read{dim}"
        stores = {"stock": open_store(Path(folder, "stock"), project, "redis", address)}
        with contextlib.suppress(ImportError):
            __import__(DROP_IN.rpartition(".")[0])
            stores["drop-in"] = open_store(Path(folder, "drop-in"), project, DROP_IN, address)
        rows = pd.DataFrame(
            {
                "item_id": IDS,
                "text_embedding": list(text),
                "image_embedding": list(image),
                "adapter_version": VERSION,
                "event_timestamp": datetime.now(UTC),
            }
        )
        with quiet_feast():
            stores["stock"].write_to_online_store("sda_item_embeddings", rows)
        server.mset({raw_key(dim, row): text[row].tobytes() for row in range(ITEMS)})
        server.mset({raw_key(dim, ITEMS + row): image[row].tobytes() for row in range(ITEMS)})
        with EmbeddingClient(f"redis://{host}:{port}", project=project, dim=dim) as client:
            yield Stored(text, image, stores, client, server)


def open_store(repo: Path, project: str, store_type: str, address: tuple[str, int]) -> feast.FeatureStore:
    repo.mkdir()
    (repo / "feature_store.yaml").write_text(
        f"project: {project}\nprovider: local\nregistry: registry.db\n"
        f"online_store: {{type: {store_type}, connection_string: '{address[0]}:{address[1]}'}}\n"
    )
    item = item_entity()
    source = embedding_source("sda", "data", item)
    with quiet_feast():
        store = feast.FeatureStore(str(repo))
        store.apply([item, source, embedding_view("sda", source, item)])
    return store


def raw_key(dim: int, row: int) -> str:
    return f"raw:{dim}:{row}"


# --- reading -------------------------------------------------------------------------------------


def contenders(at: Stored, count: int) -> dict[str, Callable[[], Vectors]]:
    """Name -> a job that reads the first `count` items into two float32 matrices."""
    ids = IDS[:count]
    dim = at.text.shape[1]
    entities = [{"item_id": item_id} for item_id in ids]
    raw_keys = [raw_key(dim, start + row) for start in (0, ITEMS) for row in range(count)]

    def floor() -> Vectors:
        block = np.frombuffer(b"".join(at.server.mget(raw_keys)), np.float32).reshape(2, count, dim)
        return block[0], block[1]

    def ours() -> Vectors:
        found = at.client.get(ids)
        return found.text, found.image

    def stock() -> Vectors:
        lists = at.stores["stock"].get_online_features(FEATURES, entities).to_dict()
        return [torch.tensor(lists[name]).numpy() for name in VECTORS]

    jobs: dict[str, Callable[[], Vectors]] = {"floor": floor, "EmbeddingClient": ours}
    if drop_in := at.stores.get("drop-in"):

        def feast_api() -> Vectors:
            response: Any = drop_in.get_online_features(FEATURES, entities)
            return [response.to_matrix(name)[0] for name in VECTORS]

        jobs["Feast API, drop-in"] = feast_api
    return {**jobs, "Feast API, stock": stock}


def compare(jobs: Mapping[str, Callable[[], Vectors]], at: Stored, count: int) -> None:
    """Every contender must return the numbers that were written, bit for bit."""
    for name, job in jobs.items():
        text, image = job()
        assert text.dtype == image.dtype == np.float32, name
        assert text.tobytes() == at.text[:count].tobytes(), name
        assert image.tobytes() == at.image[:count].tobytes(), name


def measure(at: Stored, count: int, rounds: int, stock_rounds: int) -> dict[str, Any]:
    """Milliseconds of one size, and its two ratios.

    Stock Feast takes so long that it takes part in a few rounds only, spread over all.
    """
    jobs = contenders(at, count)
    compare(jobs, at, count)
    quick = {name: job for name, job in jobs.items() if name != "Feast API, stock"}
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(stock_rounds):
        for turns in (take_turns(jobs, rounds=1, warmup=0), take_turns(quick, rounds=rounds // stock_rounds)):
            for name, values in turns.items():
                seconds[name] += values
    ours, floor = seconds["EmbeddingClient"], seconds["floor"]
    return {
        "ms": {
            name: {"p50": 1e3 * median(values), "p99": 1e3 * percentile(values, 0.99)}
            for name, values in seconds.items()
        },
        "ratio": median(seconds["Feast API, stock"]) / median(ours),
        "floor_ratio": median(ours) / median(floor),
        "floor_ratio_p99": percentile(ours, 0.99) / percentile(floor, 0.99),
    }


def measure_freeze(at: Stored, rounds: int) -> dict[str, dict[str, float]]:
    """p99 and slowest call in ms before and after gc.freeze(), in this process with torch and Feast."""
    ids = IDS[:500]
    entities = [{"item_id": item_id} for item_id in ids]
    jobs: dict[str, tuple[Callable[[], object], int]] = {
        "EmbeddingClient": (lambda: at.client.get(ids), rounds),
        "Feast API, stock": (
            lambda: at.stores["stock"].get_online_features(FEATURES, entities).to_dict(),
            max(20, rounds // 25),
        ),
    }
    figures: dict[str, dict[str, float]] = {name: {} for name in jobs}
    for when in ("before", "after"):
        if when == "after":
            gc.collect()
            gc.freeze()
        for name, (job, times) in jobs.items():
            (seconds,) = take_turns({name: job}, rounds=times).values()
            figures[name][f"p99 {when}"] = 1e3 * percentile(seconds, 0.99)
            figures[name][f"slowest {when}"] = 1e3 * max(seconds)
    gc.unfreeze()
    return figures


def measure_cluster(rounds: int) -> dict[str, float]:
    """p50 in ms of 500 x 2 x 256 from one server and from a cluster of three, in turns."""
    count, dim = NAMED_SIZE
    view = OnlineView("cluster", "sda_item_embeddings", layout.FEATURES)
    vectors = np.random.default_rng(0).normal(size=(2, count, dim)).astype(np.float32)
    there = np.ones(count, np.bool_)
    table = vectors_table(
        IDS[:count],
        text=vectors[0],
        text_found=there,
        image=vectors[1],
        image_found=there,
        adapter_version=VERSION,
        content_hashes=["0" * 64] * count,
        event_timestamp=datetime.now(UTC),
    )
    with contextlib.ExitStack() as stack:
        one = RedisAddress(*stack.enter_context(embedded_redis()))
        three = RedisAddress(
            servers.HOST, stack.enter_context(servers.cluster())[0], redis_type="redis_cluster"
        )
        jobs: dict[str, Callable[[], object]] = {}
        for name, address in (("one server", one), ("cluster of 3", three)):
            with contextlib.closing(address.connect(timeout=10)) as server:
                write_batches(server, view, table.to_batches())
            client = stack.enter_context(EmbeddingClient(address, project="cluster", dim=dim))
            assert client.get(IDS[:count]).text.tobytes() == vectors[0].tobytes(), name
            jobs[name] = lambda client=client: client.get(IDS[:count])
        ms = {name: 1e3 * median(values) for name, values in take_turns(jobs, rounds=rounds).items()}
    return {**ms, "ratio": ms["cluster of 3"] / ms["one server"]}


def rounded(value: Any) -> Any:
    """Nested figures with three digits behind the point."""
    if isinstance(value, Mapping):
        return {name: rounded(inner) for name, inner in value.items()}
    return round(value, 3)


def main() -> None:
    arguments = options(__doc__.splitlines()[0])
    rounds, stock_rounds = (200, 10) if arguments.quick else (300, 10)
    sizes = [NAMED_SIZE] if arguments.quick else FULL_SIZES
    torch.set_num_threads(1)
    results: dict[tuple[int, int], dict[str, Any]] = {}
    with embedded_redis() as address:
        for dim in dict.fromkeys(dim for _, dim in sizes):
            with stored(dim, address) as at:
                for count in (count for count, other in sizes if other == dim):
                    results[count, dim] = measure(at, count, rounds, stock_rounds)
                if dim == NAMED_SIZE[1]:
                    freeze = measure_freeze(at, 5 * rounds)
    names = list(results[NAMED_SIZE]["ms"])
    print(
        tabulate(
            [
                [
                    f"{count} x 2 x {dim}",
                    *(f"{one['ms'][name]['p50']:.2f} / {one['ms'][name]['p99']:.2f}" for name in names),
                    f"{one['ratio']:.1f}",
                    f"{one['floor_ratio']:.2f}",
                ]
                for (count, dim), one in results.items()
            ],
            headers=[
                "items x vectors x d",
                *(f"{name}, ms p50 / p99" for name in names),
                "ratio",
                "floor ratio",
            ],
        )
    )
    print("\ngc.freeze() with torch and Feast in the process, 500 x 2 x 256, ms:")
    print(
        tabulate([{"": name, **figures} for name, figures in freeze.items()], headers="keys", floatfmt=".2f")
    )
    from_cluster = measure_cluster(rounds)
    print(f"\n500 x 2 x 256 from a cluster, ms p50: {rounded(from_cluster)}")
    named = results[NAMED_SIZE]
    report(
        "online_read",
        against=f"feast {feast.__version__} get_online_features().to_dict() + torch.tensor",
        ratio=named["ratio"],
        floor_ratio=named["floor_ratio"],
        floor="redis-py MGET of the same numbers into one numpy array",
        sizes={f"{count}x2x{dim}": rounded(one) for (count, dim), one in results.items()},
        gc_freeze=rounded(freeze),
        cluster=rounded(from_cluster),
    )


if __name__ == "__main__":
    main()
