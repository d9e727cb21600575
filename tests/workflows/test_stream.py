"""`stream`: upserts and deletions reach both stores, are acknowledged afterwards, and are written twice unharmed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from unittest import mock

import pytest
import redis

from sda_features.config import CatalogSettings
from sda_features.demo.catalogue import make_catalogue
from sda_features.errors import FeatureStoreError, OnlineStoreError, SettingsError
from sda_features.feature_store.matrices import load_vectors
from sda_features.workflows import materialize
from sda_features.workflows.stream import Streamed, stream
from tests.shop import catalog, tiny_encoder
from tests.workflows.stores import served
from tests.workflows.streams import KafkaEvents, RedisEvents


@pytest.mark.parametrize("kind", ["redis", "kafka"])
def test_events_reach_both_stores(kind, tmp_path, redis_server, new_repo, new_project):
    repo, project = new_repo(tmp_path / "repo", feature_sets=["sda"]), new_project()
    make_catalogue(10).write(tmp_path / "items.parquet")
    load = tiny_encoder(tmp_path / "model")
    items, rows = catalog(tmp_path / "items.parquet"), CatalogSettings.parse(path="events.jsonl")

    with redis.Redis(*redis_server) as server:
        events = RedisEvents(server, project) if kind == "redis" else KafkaEvents(project, tmp_path)
        events.add({"item_id": "new", "title": "a red oak table"})
        with events.open() as source, pytest.raises(FeatureStoreError, match="not complete. Write the"):
            until_done(stream(repo, "sda", rows, load, source))
        materialize(repo, "sda", items, load, progress=False)
        events.add({"item_id": "gone", "title": "a lamp"})
        events.add({"item_id": "gone"}, delete=True)
        events.add("no item")

        crash = mock.patch("sda_features.feature_store.online_rows.write_online", side_effect=ConnectionError)
        with (
            crash,
            events.open() as source,
            pytest.raises(ConnectionError),
        ):  # the rows are offline, not online
            until_done(stream(repo, "sda", rows, load, source))
        assert events.waiting() == 4
        with events.open() as source:
            batches = stream(repo, "sda", rows, load, source, seconds=0.1)
            done = Counter(vars(until_done(batches)))
            while events.waiting():
                done.update(vars(next(batches)))
        assert done["deleted"] == 1
        assert done.total() == 4
    online, trained = (read(repo, "sda", ["new", "gone"]) for read in (served, load_vectors))
    assert online.text_found.tolist() == trained.text_found.tolist() == [True, False]
    assert online.text[0].tobytes() == trained.text[0].tobytes()
    assert materialize(repo, "sda", items, load, max_removed=1.0, progress=False).removed == 1


def until_done(batches: Iterator[Streamed]) -> Streamed:
    """The first batch with events; a group of Kafka takes seconds to form."""
    return next(done for done in batches if done != Streamed(0, 0, 0))


def test_a_kafka_that_is_not_there_and_odd_settings_are_said(tmp_path, monkeypatch):
    from sda_features.workflows import kafka_topic as kafka

    monkeypatch.setattr(kafka, "PATIENCE", 1.0)
    with pytest.raises(OnlineStoreError, match="^Kafka does not answer: "):
        kafka.KafkaTopic("items", {"bootstrap.servers": "127.0.0.1:1", "group.id": "g"})
    (tmp_path / "odd").write_text("# a comment\nsasl.username\n")
    with pytest.raises(SettingsError, match="NAME=VALUE in every line"):
        kafka.kafka_topic("items", "127.0.0.1:1", "g", tmp_path / "odd")
