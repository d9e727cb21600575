"""Sources of events to test `stream` with: a Redis Stream, and a topic of librdkafka's own Kafka cluster."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

from sda_features.workflows.stream import RedisStream, Source


class RedisEvents:
    def __init__(self, server: redis.Redis, key: str) -> None:
        self.server, self.key = server, key

    def add(self, item: Any, *, delete: bool = False) -> None:
        self.server.xadd(self.key, {"item": json.dumps(item), **({"op": "delete"} if delete else {})})

    def waiting(self) -> int:
        """Events that are not acknowledged."""
        (group,) = self.server.xinfo_groups(self.key)  # type: ignore[misc]
        return int(group["pending"]) + int(group["lag"] or 0)

    def open(self) -> contextlib.AbstractContextManager[Source]:
        return contextlib.nullcontext(RedisStream(self.server, self.key))


class KafkaEvents:
    """Speaks Kafka's protocol over TCP, with groups and committed offsets."""

    def __init__(self, topic: str, folder: Path) -> None:
        from confluent_kafka import Producer

        self.topic, self.settings = topic, folder / "kafka.properties"
        # This cluster lets a member go at the end of its session alone, though the client says that it leaves.
        self.settings.write_text("session.timeout.ms=6000\nheartbeat.interval.ms=500\n")
        self.producer = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1, "log_level": 0})
        (broker,) = self.producer.list_topics(timeout=60).brokers.values()
        self.servers = f"{broker.host}:{broker.port}"

    def add(self, item: Any, *, delete: bool = False) -> None:
        # No item goes after `new`: alone in a partition it could come first, as a batch that writes nothing.
        key = item["item_id"] if isinstance(item, dict) else "new"
        self.producer.produce(self.topic, None if delete else json.dumps(item), key=key)
        assert self.producer.flush(60) == 0

    def waiting(self) -> int:
        """Events that are not acknowledged."""
        from confluent_kafka import Consumer, TopicPartition

        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": "sda-features"})
        partitions = self.producer.list_topics(timeout=60).topics[self.topic].partitions
        places = [TopicPartition(self.topic, number) for number in partitions]
        committed = consumer.committed(places, timeout=60)
        ends = [consumer.get_watermark_offsets(place, timeout=60)[1] for place in places]
        consumer.close()
        return sum(end - max(place.offset, 0) for place, end in zip(committed, ends, strict=True))

    @contextlib.contextmanager
    def open(self) -> Iterator[Source]:
        from sda_features.workflows.kafka_topic import kafka_topic

        with kafka_topic(self.topic, self.servers, "sda-features", self.settings) as source:
            yield source
