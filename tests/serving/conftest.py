"""The shared server, a project of its own for each test, and a client of it."""

from collections.abc import Iterator

import pytest
import redis

from sda_features.serving import EmbeddingClient


@pytest.fixture(scope="session")
def url(redis_server) -> str:
    return "redis://{}:{}".format(*redis_server)


@pytest.fixture(scope="module")
def server(url) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as client:
        yield client


@pytest.fixture
def project(new_project) -> str:
    return new_project()


@pytest.fixture
def client(url, project) -> Iterator[EmbeddingClient]:
    with EmbeddingClient(url, project=project) as client:
        yield client
