"""The example service against a real server, through its HTTP interface."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import redis
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from examples.ranking_service.app import create_app
from examples.ranking_service.breaker import CircuitBreaker
from examples.ranking_service.ranker import Basis, Reason
from examples.ranking_service.settings import ServiceSettings
from sda_features.config import EvaluationSettings, RecommenderSettings
from sda_features.errors import CheckpointError, FeatureStoreError, SettingsError
from sda_features.recommenders.training import train
from sda_features.serving import codec, layout
from sda_features.serving.embedded import embedded_redis
from tests.contracts.recommender import ITEMS, USERS, small_log

VERSION = "0123456789ab"
DIM = 6
NOWHERE = ("127.0.0.1", 1)
NO_VECTOR = 9  # item code
ALL = [str(item) for item in range(ITEMS)]


def raw_vectors(seed=0):
    random = np.random.default_rng(seed)
    vectors = {name: random.normal(20, 1, (ITEMS + 1, DIM)).astype(np.float32) for name in ("text", "image")}
    for matrix in vectors.values():
        matrix[[0, NO_VECTOR]] = 0
    return vectors


@pytest.fixture(scope="module")
def trained():
    settings = RecommenderSettings(
        hidden_dim=8, max_length=6, epochs=4, validate_every=2, learning_rate=0.05, threads=1, device="cpu"
    )
    evaluation = EvaluationSettings(cutoff=3, negatives=5)
    return train(small_log(), settings, evaluation, raw_vectors(), vectors_version=VERSION, progress=False)


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    trained.save(path)
    return path


def fill(address, project, vectors, *, version=VERSION, extra=(), id_type="string"):
    """Write vectors [I + 1, d] under the ids of their codes, and `extra` pairs of code and id."""
    fields = [layout.hash_field("sda_item_embeddings", feature) for feature in layout.FEATURES]
    with redis.Redis(*address) as server:
        for code, item_id in [*enumerate(ALL, 1), *extra]:
            (key,) = layout.redis_keys([item_id], project=project, id_type=id_type)
            rows = [vectors[name][[code]] for name in ("text", "image")]
            values = [codec.encode_vectors(row, row.any(axis=1))[0] for row in rows]
            server.hset(key, mapping=dict(zip(fields, [*values, codec.encode_string(version)], strict=True)))


@pytest.fixture
def project(new_project):
    return new_project()


@pytest.fixture
def service(folder, tmp_path):
    """A callable: a client of the service, whose repo names `server` (host, port) and `project`."""

    @contextlib.contextmanager
    def start(server, project="shop", **settings):
        online = f"{{type: redis, connection_string: '{server[0]}:{server[1]}'}}"
        (tmp_path / "feature_store.yaml").write_text(f"project: {project}\nonline_store: {online}\n")
        # A second: a busy test machine must not look like a slow Redis.
        settings = {"run": folder, "repo": tmp_path, "deadline_ms": 1000, **settings}
        with TestClient(create_app(ServiceSettings.parse(**settings))) as client:
            yield client

    return start


def rank(client, history, candidates=ALL, k=ITEMS):
    answer = client.post("/rank", json={"history": history, "candidates": candidates, "k": k})
    assert answer.status_code == 200, answer.text
    return answer.json()


def state(answer):
    return answer["basis"], answer["degraded"], answer["reason"]


def expected_of(trained, user):
    """What the trained model's own table says: the history, and the items with scores, best first."""
    log = trained.split.interactions
    history = log.item_ids.take(log.items[log.offsets[user] : log.offsets[user + 1]] - 1).to_pylist()
    scores = trained.model.scorer(log)(np.array([user]))[0, 1:]
    best = np.argsort(-scores, kind="stable")
    return history, [
        {"item_id": ALL[row], "score": pytest.approx(float(scores[row]), abs=5e-6)} for row in best
    ]


def samples(client):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
    }


def test_scores_are_those_of_the_trained_model(trained, service, redis_server, project):
    fill(redis_server, project, raw_vectors())
    with service(redis_server, project) as client:
        for user in range(USERS):
            history, expected = expected_of(trained, user)
            answer = rank(client, history)
            assert answer["items"] == expected
            assert state(answer) == ("vectors", False, None)
            assert rank(client, history, k=3)["items"] == answer["items"][:3]
        assert (answer["vectors_version"], len(answer["run_version"])) == (VERSION, 12)
        assert client.get("/ready").json() == {"status": "ready", "problem": None}


def test_vectors_are_read_for_each_request(service, redis_server, project):
    with service(redis_server, project) as client:
        fill(redis_server, project, raw_vectors())
        before = rank(client, ["2", "5"])
        fill(redis_server, project, raw_vectors(seed=1), extra=[(4, "new")])
        after = rank(client, ["2", "5"], [*ALL, "new", "newer"])
    assert state(before) == state(after) == ("vectors", False, None)
    assert before["items"] != after["items"]
    assert "new" in [item["item_id"] for item in after["items"]]
    assert after["unknown"] == ["newer"]
    assert len(after["items"]) == ITEMS


@pytest.mark.parametrize("history", [[], ["newer"]])
def test_without_a_known_history_popular_items_come_first(trained, service, redis_server, project, history):
    fill(redis_server, project, raw_vectors())
    with service(redis_server, project) as client:
        answer = rank(client, history)
    assert state(answer) == ("popularity", False, None)
    counts = trained.split.interactions.item_counts[1:]
    assert [item["score"] for item in answer["items"]] == sorted(counts, reverse=True)
    assert all(item["score"] == counts[int(item["item_id"])] for item in answer["items"])


def test_without_redis_the_run_answers(trained, service):
    history, expected = expected_of(trained, 3)
    with service(NOWHERE, breaker_failures=2, breaker_pause_s=3600) as client:
        answers = [rank(client, history, [*ALL, "new"]) for _ in range(4)]
        assert client.get("/health").json() == {"status": "alive"}
        ready = client.get("/ready")
        counts = samples(client)
    reasons = ["redis_unavailable", "redis_unavailable", "redis_paused", "redis_paused"]
    assert [state(answer) for answer in answers] == [("run", True, reason) for reason in reasons]
    for answer in answers:
        assert answer["items"] == expected
        assert answer["unknown"] == ["new"]
    assert ready.status_code == 503
    assert "cannot be reached" in ready.json()["problem"]
    assert counts["ranking_degraded_total", "redis_paused"] == 2
    assert counts["ranking_read_errors_total", "redis_unavailable"] == 2
    assert counts["ranking_answers_total", "run"] == 4
    assert counts["ranking_breaker_open",] == 1


def test_a_redis_that_hangs_and_recovers(trained, service):
    history, expected = expected_of(trained, 3)
    with embedded_redis() as address:
        fill(address, "shop", raw_vectors())
        options = {"deadline_ms": 50, "breaker_failures": 1, "breaker_pause_s": 0.05}
        with service(address, **options) as client:
            until(client, history, ("vectors", False, None))
            with redis.Redis(*address) as server:
                process = server.info("server")["process_id"]
            os.kill(process, signal.SIGSTOP)  # connections stay open and nobody answers
            try:
                stuck = [rank(client, history) for _ in range(20)]
            finally:
                os.kill(process, signal.SIGCONT)
            until(client, history, ("vectors", False, None))
            counts = samples(client)
    assert {answer["basis"] for answer in stuck} == {"run"}
    assert {answer["reason"] for answer in stuck} <= {"redis_unavailable", "redis_paused"}
    assert all(answer["items"] == expected for answer in stuck)
    assert counts["ranking_degraded_total", "redis_paused"] > 0
    assert counts["ranking_breaker_open",] == 0


def until(client, history, wanted):
    """Ask until an answer is as wanted; the pauses are those of the breaker."""
    for _ in range(200):
        if state(rank(client, history)) == wanted:
            return
        time.sleep(0.02)
    pytest.fail(f"no answer was {wanted}")


def test_a_redis_that_lost_its_vectors(trained, service, redis_server, project):
    history, expected = expected_of(trained, 3)
    with service(redis_server, project) as client:
        answer = rank(client, history)
        assert state(answer) == ("run", True, "missing_vectors")
        assert answer["items"] == expected
        ready = client.get("/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "degraded")
        assert f"vectors of 0 of the {ITEMS} most popular" in ready.json()["problem"]
        fill(redis_server, project, raw_vectors())
        assert state(rank(client, history)) == ("vectors", False, None)
        with redis.Redis(*redis_server) as server:
            server.delete(*layout.redis_keys(["3"], project=project))
        answer = rank(client, history)
        assert state(answer) == ("vectors", True, "missing_vectors")
        assert answer["items"] == expected
        # Code 9 never had a vector, so its absence is no fault.
        answer = rank(client, ["2"], [str(NO_VECTOR - 1), "4"])
        assert state(answer) == ("vectors", False, None)
        counts = samples(client)
    assert counts["ranking_items_asked_total",] == 3 * (len(history) + ITEMS) + 3
    assert counts["ranking_items_found_total",] < counts["ranking_items_asked_total",]


@pytest.mark.parametrize(
    ("stored", "version", "problem"),
    [
        (raw_vectors(), "ffffffffffff", "adapter version 'ffffffffffff', expected '0123456789ab'"),
        ({name: rows[:, :4] for name, rows in raw_vectors().items()}, VERSION, "dimension 4, expected 6"),
        (
            {name: np.where(rows != 0, np.inf, rows) for name, rows in raw_vectors().items()},
            VERSION,
            "NaN or infinity",
        ),
    ],
)
def test_vectors_of_another_space_are_not_used(
    trained, service, redis_server, project, stored, version, problem
):
    history, expected = expected_of(trained, 3)
    fill(redis_server, project, stored, version=version)
    with service(redis_server, project) as client:
        answer, ready = rank(client, history), client.get("/ready")
    assert state(answer) == ("run", True, "wrong_vectors")
    assert answer["items"] == expected
    assert ready.status_code == 503
    assert problem in ready.json()["problem"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"history": [], "candidates": []}, "at least 1 item"),
        ({"history": [], "candidates": ["1"] * 2}, "Expected each candidate once."),
        (
            {"history": [], "candidates": [str(n) for n in range(31)]},
            "Expected at most 30 candidates, got 31.",
        ),
        ({"history": ["1"] * 21, "candidates": ["1"]}, "Expected at most 20 history, got 21."),
        ({"history": [], "candidates": ["1"], "k": 0}, "greater than or equal to 1"),
        ({"history": [], "candidates": ["1"], "limit": 3}, "Extra inputs"),
        ({"history": [], "candidates": [1]}, "valid string"),
        ({"history": [], "candidates": [""]}, "at least 1 character"),
        ({"history": ["\ud800"], "candidates": ["1"]}, "string"),
    ],
)
def test_requests_that_are_refused(service, body, message):
    with service(NOWHERE, max_candidates=30, max_history=20) as client:
        answer = client.post("/rank", content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert message in answer.json()["detail"][0]["msg"]


def test_integer_ids(trained, service, redis_server, project):
    history, expected = expected_of(trained, 3)
    fill(redis_server, project, raw_vectors(), id_type="int64")
    with service(redis_server, project, id_type="int64") as client:
        answer = rank(client, history)
        refused = client.post("/rank", json={"history": [], "candidates": ["B001"]})
    assert (answer["items"], state(answer)) == (expected, ("vectors", False, None))
    assert refused.status_code == 422
    assert "'B001' is not one" in refused.json()["detail"][0]["msg"]


def test_a_run_on_ids_alone_needs_no_redis(trained, service, tmp_path):
    alone = train(small_log(), trained.settings, trained.evaluation, progress=False)
    alone.save(tmp_path / "run")
    with service(NOWHERE, run=tmp_path / "run") as client:
        history, expected = expected_of(alone, 3)
        answer = rank(client, history)
        assert client.get("/ready").status_code == 200
    assert (answer["items"], state(answer)) == (expected, ("run", False, None))


def test_services_that_cannot_start(folder, tmp_path, trained, monkeypatch):
    for name in ("RANKING_RUN", "RANKING_REPO"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingsError, match=r"run: Field required(.|\n)*repo: Field required"):
        create_app()
    environment = {"RANKING_RUN": str(folder), "RANKING_REPO": str(tmp_path), "RANKING_DEADLINE_MS": "20"}
    settings = ServiceSettings.from_environment(environment)
    assert (settings.repo, settings.deadline_ms) == (tmp_path, 20)
    with pytest.raises(SettingsError, match="deadlines: Extra inputs"):
        ServiceSettings.from_environment(environment | {"RANKING_DEADLINES": "1"})
    with pytest.raises(FeatureStoreError, match=r"there is no .*feature_store\.yaml"):
        create_app(settings)
    with pytest.raises(CheckpointError, match="Expected a run folder"):
        create_app(settings.model_copy(update={"run": tmp_path}))
    other = train(small_log(), trained.settings, trained.evaluation, raw_vectors()["text"], progress=False)
    other.save(tmp_path / "run")
    with pytest.raises(SettingsError, match="trained on vectors named vectors; the store has text and image"):
        create_app(settings.model_copy(update={"run": tmp_path / "run"}))


def test_the_breaker():
    now = [0.0]
    breaker = CircuitBreaker(failures=2, pause=10, clock=lambda: now[0])
    breaker.failure()
    breaker.success()
    breaker.failure()
    assert (breaker.allow(), breaker.is_open) == (True, False)
    breaker.failure()
    assert (breaker.allow(), breaker.is_open) == (False, True)
    now[0] = 10
    assert [breaker.allow() for _ in range(3)] == [True, False, False]
    now[0] = 12
    breaker.failure()  # the one that was let through
    now[0] = 21
    assert not breaker.allow()
    now[0] = 22
    assert breaker.allow()
    breaker.success()
    assert [breaker.allow() for _ in range(3)] == [True] * 3


def test_the_readme_names_every_setting_reason_and_metric(service):
    readme = (Path(__file__).parents[2] / "examples" / "ranking_service" / "README.md").read_text()
    for name, field in ServiceSettings.model_fields.items():
        default = "" if field.is_required() else f"`{field.default}` "
        assert f"| `RANKING_{name.upper()}` | {default}| {field.description} |" in readme
    for word in (*get_args(Reason), *get_args(Basis)):
        assert f"`{word}`" in readme
    with service(NOWHERE) as client:
        families = text_string_to_metric_families(client.get("/metrics").text)
    for name in {family.name for family in families if not family.name.endswith("_created")}:
        assert f"`{name}" in readme
