"""A Kafka topic as the source of `stream`, by the extra `kafka` (confluent-kafka)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from sda_features.errors import OnlineStoreError, SettingsError
from sda_features.workflows.stream import Event

logger = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds for a broker to answer at all
GATHER = 0.02  # seconds in which more records join the first of a batch
SETTINGS: dict[str, str | int | bool] = {
    "enable.auto.commit": False,  # `acknowledge` commits
    "auto.offset.reset": "earliest",
    "max.poll.interval.ms": 1_800_000,  # a batch is encoded between two polls
}


class KafkaTopic:
    """Records of a topic, read by a consumer group; see `stream.Source`.

    The value of a record is a row of the catalogue as JSON. A record without a value (a tombstone, as
    compacted topics have) deletes the item that its key names, and so does one with the header `op:
    delete` the item of its value. Use the id as key: a partition keeps its order, a topic does not.

    Args:
        settings: of librdkafka, such as bootstrap.servers and group.id.
        id_column: column of the item's id in a row.

    Raises:
        OnlineStoreError: no broker answers, or it has no such topic.
    """

    def __init__(self, topic: str, settings: Mapping[str, str], id_column: str = "item_id") -> None:
        self._topic, self._id_column = topic, id_column
        self._waiting: list[Event] = []
        try:
            self._consumer = Consumer({**SETTINGS, **settings}, logger=logger)
            found = self._consumer.list_topics(topic, timeout=PATIENCE).topics[topic]
        except KafkaException as error:
            raise OnlineStoreError(f"Kafka does not answer: {error.args[0].str()}.") from None
        if found.error is not None:
            raise OnlineStoreError(f"Kafka has no topic {topic!r} for this client: {found.error.str()}.")
        self._consumer.subscribe([topic])

    def read(self, count: int, seconds: float) -> Sequence[Event]:
        """See `Source`."""
        if not self._waiting:
            first = self._consumer.poll(seconds)
            more = self._consumer.consume(count - 1, GATHER) if first is not None and count > 1 else []
            self._waiting = [self._event(record) for record in (first, *more) if record is not None]
        return self._waiting

    def acknowledge(self, events: Sequence[Event]) -> None:
        """See `Source`: commit the offset behind the last event of each partition."""
        ends = {event.position[0]: event.position[1] + 1 for event in events}  # offsets ascend
        if ends:
            offsets = [TopicPartition(self._topic, partition, end) for partition, end in ends.items()]
            try:
                self._consumer.commit(offsets=offsets, asynchronous=False)
            except KafkaException as error:
                raise OnlineStoreError(
                    f"Kafka did not take the offsets: {error.args[0].str()}. What was written stays; the events come "
                    "again, here or in the process that took the partition over, and are written again."
                ) from None
        self._waiting = []

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()

    def _event(self, record: Message) -> Event:
        if error := record.error():
            raise OnlineStoreError(f"Kafka cannot deliver {self._topic!r}: {error.str()}.")
        position, value = (record.partition(), record.offset()), record.value()
        deleted = value is None or dict(record.headers() or []).get("op") == b"delete"
        try:
            item = {self._id_column: (record.key() or b"").decode()} if value is None else json.loads(value)
        except ValueError:
            item = None
        return Event(position, item if isinstance(item, dict) else None, deleted)


def kafka_topic(
    topic: str, servers: str, group: str, config: Path | None = None, id_column: str = "item_id"
) -> closing[KafkaTopic]:
    """The topic at `servers`; the consumer leaves its group after the block.

    Args:
        servers: HOST:PORT, several with commas.
        config: a file of librdkafka's settings, NAME=VALUE a line, for log-ins and certificates.
    """
    settings = {"bootstrap.servers": servers, "group.id": group, **(_read(config) if config else {})}
    return closing(KafkaTopic(topic, settings, id_column))


def _read(path: Path) -> dict[str, str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}.") from None
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    if not all(sign for _, sign, _ in pairs):
        raise SettingsError(f"Expected NAME=VALUE in every line of {path}, as Kafka's own tools read it.")
    return {name.strip(): value.strip() for name, _, value in pairs}
