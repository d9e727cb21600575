"""`materialize --engine ray`: workers of a Ray cluster read, encode and write, this process commits.

Ray Data streams slices of the catalogue through a pool of actors that have an encoder each. A worker
that sees the folder or URL of the slot writes its rows there, as files that no reader sees, and hands
over their names; this process, which holds the slot, lets them count. Another worker hands over
vectors. Ray does again what a lost worker had in hand, and hands each result over once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import pyarrow as pa
import ray
from deltalake.transaction import AddAction
from ray.data import ActorPoolStrategy, read_datasource
from ray.exceptions import RayError

from sda_features.catalog.rows import Catalog
from sda_features.config import MODALITIES
from sda_features.errors import EngineError, SDAError, SettingsError
from sda_features.lvlm.encoded_items import EncodedItems
from sda_features.offline.schema import matrix_of
from sda_features.workflows.engines import LoadEncoder, Progress, Stage, Target, WrittenItems
from sda_features.workflows.ray_source import CatalogSource
from sda_features.workflows.ray_worker import Worker, version_of

TASK_RETRIES = 3  # of rows whose worker died; rows that kill every worker end the run
CONNECT_TIMEOUT = 5.0  # seconds


@contextlib.contextmanager
def ray_engine(
    load_encoder: LoadEncoder,
    batch_size: int,
    shard_rows: int,
    *,
    address: str | None = None,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
) -> Iterator[RayEncoding]:
    """The `Engine` (engines.py) whose encoders are actors of a Ray cluster.

    Args:
        load_encoder: called in every worker, so it is picklable, and the files it reads are there.
        batch_size: sequences encoded together.
        shard_rows: catalogue rows of one task.
        address: of a running cluster, e.g. "auto" or "ray://head:10001"; None: one is started on
            this machine and stopped after the block. A program that has called `ray.init` itself
            keeps its cluster.
        workers: encoders; None: one a GPU, or one a CPU, with one CPU left to read.
        gpus_per_worker: GPUs of each, may be a fraction; None: 1 if the cluster has any.

    Raises:
        SettingsError: the cluster is too small for the workers.
        EngineError: the cluster cannot be reached, or a worker fails again and again.
        CheckpointError: the encoder does not load in a worker.
    """
    with _cluster(address, workers):
        cpus, gpus = (int(ray.cluster_resources().get(name, 0)) for name in ("CPU", "GPU"))
        share = min(1.0, gpus) if gpus_per_worker is None else gpus_per_worker
        fitting = min(cpus - 1, int(gpus / share)) if share else cpus - 1
        wanted = workers or max(1, fitting)
        if wanted > fitting:
            raise SettingsError(
                f"Expected at most {fitting} workers, got {wanted}: the cluster has {cpus} CPUs and {gpus} GPUs, a "
                f"worker takes 1 CPU and {share:g} GPUs, and reading the catalogue takes 1 CPU."
            )
        options = {"num_cpus": 1, "num_gpus": share}
        with _ray_errors():
            task = ray.remote(max_retries=TASK_RETRIES, **options)(version_of)
            version = ray.get(task.remote(load_encoder))
        yield RayEncoding(load_encoder, version, batch_size, shard_rows, wanted, options)


@dataclass(frozen=True)
class RayEncoding:
    """`Encoding` on a Ray cluster, in any order; see `ray_engine`. `options` are the resources of each worker."""

    load_encoder: LoadEncoder
    version: str
    batch_size: int
    shard_rows: int
    workers: int
    options: dict[str, float]

    def shards(
        self,
        catalog: Catalog,
        known: Mapping[str, str],
        progress: Progress,
        stage: Stage = contextlib.nullcontext,
    ) -> Iterator[EncodedItems | WrittenItems]:
        """Yield what workers have written, or at least `shard_rows` items at a time; see `Encoding`."""
        waiting: list[pa.Table] = []
        with _ray_errors(), stage() as target:
            for table in self._results(catalog, known, target):
                for note in map(json.loads, table["note"].drop_null().to_pylist()):
                    catalog.add_problems(note["problems"])
                    progress.skipped(note["unchanged"])
                    progress.texts_cut += note["texts_cut"]
                    progress.made(note["made"])
                    if note["files"]:
                        yield WrittenItems([AddAction(**file) for file in note["files"]], note["count"])
                encoded = table.filter(table["note"].is_null())
                progress.made(sum(len(encoded) - encoded[name].null_count for name in MODALITIES))
                waiting.append(encoded)
                if sum(map(len, waiting)) >= self.shard_rows:
                    yield _items(waiting)
                    waiting = []
        if sum(map(len, waiting)):
            yield _items(waiting)

    def _results(
        self, catalog: Catalog, known: Mapping[str, str], target: Target | None
    ) -> Iterator[pa.Table]:
        """Tables of `ray_worker.RESULT`, as workers finish them."""
        source = CatalogSource(catalog, known)
        rows = read_datasource(source, override_num_blocks=len(source.parts))
        with warnings.catch_warnings():
            # Ray would do without this bound, and restart workers for ever. Releases to come will.
            warnings.filterwarnings("ignore", ".*ray_remote_args", DeprecationWarning)
            results = rows.repartition(target_num_rows_per_block=self.shard_rows).map_batches(
                Worker,
                fn_constructor_args=(
                    self.load_encoder,
                    self.version,
                    catalog.for_workers(),
                    self.batch_size,
                    target,
                ),
                batch_size=self.shard_rows,  # of a block; with GPUs, Ray asks for a number
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=self.workers),
                max_task_retries=TASK_RETRIES,
                **self.options,
            )
        results.context.enable_progress_bars = False  # `Progress` has one
        return iter(results.iter_batches(batch_size=None, batch_format="pyarrow"))


def _items(tables: list[pa.Table]) -> EncodedItems:
    table = pa.concat_tables(tables)
    ids, hashes = table["item_id"].to_pylist(), table["content_hash"].to_pylist()
    return EncodedItems(ids, hashes, *matrix_of(table["text"]), *matrix_of(table["image"]))


@contextlib.contextmanager
def _cluster(address: str | None, workers: int | None) -> Iterator[None]:
    """A connection to Ray; one that is opened here is closed after the block."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, object] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        # Ray logs one line an actor about the restart of actors in general.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        cpus = None if workers is None else workers + 1
        options |= {"num_cpus": cpus, "include_dashboard": False}
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)  # errors are raised, too
    try:
        if address is not None and (target := urlsplit(f"//{address.removeprefix('ray://')}")).port:
            # Ray itself would wait for minutes.
            socket.create_connection((target.hostname, target.port), CONNECT_TIMEOUT).close()
        ray.init(address or "local", **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise EngineError(f"Ray cannot be reached at {address or 'this machine'}: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _ray_errors() -> Iterator[None]:
    """Raise an `SDAError` of a worker as such, and what Ray itself reports as `EngineError`."""
    try:
        yield
    except RayError as error:
        cause: BaseException | None = error
        while isinstance(cause, RayError):  # some of them pretend to be of the class of their cause
            cause = getattr(cause, "cause", None) or cause.__cause__
        if isinstance(cause, SDAError):
            raise cause from None
        raise EngineError(
            f"Ray gave up: {error}\nWhat was written stays, and the next run goes on from there."
        ) from error
