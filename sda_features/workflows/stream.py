"""`sda-features stream`: new items get their vectors seconds after they are created.

A process keeps the encoder loaded and takes upserts and deletions from a source of events. A batch
is acknowledged after the offline and the online store have it. One that was not is delivered again
and written again, with the same vectors and a later time, so nothing is lost and nothing is doubled.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sda_features.catalog.rows import Catalog
from sda_features.config import CatalogSettings
from sda_features.errors import FeatureStoreError
from sda_features.results import Result
from sda_features.workflows.engines import LoadEncoder, LocalEncoding, Progress, rows_of

if TYPE_CHECKING:
    import redis

TIMEOUT = 60.0  # seconds; a read waits for events meanwhile


@dataclass(frozen=True)
class Event:
    """What happened to an item.

    Attributes:
        position: of the event, for `Source.acknowledge`.
        item: the row of the catalogue by column, or only the id if the item is gone; None: not readable.
        deleted: whether it is gone.
    """

    position: Any
    item: dict[str, Any] | None
    deleted: bool = False


class Source(Protocol):
    """Events in order, each delivered until it is acknowledged: a Redis Stream, or Kafka (kafka_topic.py)."""

    def read(self, count: int, seconds: float) -> Sequence[Event]:
        """Up to `count` events, those first that were delivered and not acknowledged; none after so long."""

    def acknowledge(self, events: Sequence[Event]) -> None:
        """Never deliver these again."""


@dataclass
class RedisStream:
    """Entries of a Redis Stream, read by a consumer group: `XADD key * item JSON`, or `op delete item JSON`.

    Attributes:
        group: the consumer group; made if it is missing, from the beginning of the stream.
        consumer: the name under which entries are delivered; a process that takes over another's name
            takes over what that one has not acknowledged.
    """

    server: redis.Redis
    key: str
    group: str = "sda-features"
    consumer: str = "stream"
    caught_up: bool = False

    def __post_init__(self) -> None:
        import redis

        try:
            self.server.xgroup_create(self.key, self.group, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def read(self, count: int, seconds: float) -> Sequence[Event]:
        """See `Source`."""
        start = ">" if self.caught_up else "0"  # "0": delivered to this name before, not acknowledged
        found: Any = self.server.xreadgroup(
            self.group, self.consumer, {self.key: start}, count=count, block=int(seconds * 1000)
        )
        streams = found.items() if isinstance(found, dict) else found or []
        entries = [entry for _, entries in streams for entry in entries]
        if not entries and not self.caught_up:
            self.caught_up = True
            return self.read(count, seconds)
        return [_event(*entry) for entry in entries if entry and len(entry) == 2]

    def acknowledge(self, events: Sequence[Event]) -> None:
        """See `Source`."""
        if events:
            self.server.xack(self.key, self.group, *(event.position for event in events))


@contextlib.contextmanager
def redis_stream(repo: Path, key: str, url: str | None, group: str, consumer: str) -> Iterator[RedisStream]:
    """The stream `key` of the server at `url`, or of the repo's online store."""
    import redis

    from sda_features.serving.connection import redis_errors
    from sda_features.serving.repo_config import read_repo_config

    address = read_repo_config(repo).redis_address()
    with (
        redis_errors(address),
        redis.Redis.from_url(url) if url else address.connect(timeout=TIMEOUT) as server,
    ):
        yield RedisStream(server, key, group, consumer)


@dataclass(frozen=True)
class Streamed(Result):
    """What one batch of events did.

    Attributes:
        written, deleted: items.
        rejected: events that hold no usable item; they are acknowledged, too.
    """

    written: int
    deleted: int
    rejected: int

    def __str__(self) -> str:
        return f"written {self.written:,}  deleted {self.deleted:,}  rejected {self.rejected:,}"


def stream(
    repo: Path,
    feature_set: str,
    settings: CatalogSettings,
    load_encoder: LoadEncoder,
    source: Source,
    *,
    batch_size: int = 32,
    max_events: int = 256,
    seconds: float = 1.0,
) -> Iterator[Streamed]:
    """Write what a source delivers, for ever; yield after each batch, empty ones too.

    Args:
        feature_set: its live or stored version is that of the encoder: materialize the catalogue first.
        settings: how rows are read, as for `materialize`; the path does not matter.
        batch_size: sequences encoded together.
        max_events: events of one batch.
        seconds: how long to wait for events before an empty batch is yielded.

    Raises:
        FeatureStoreError: the version of the encoder is not stored, or another run is writing it.
    """
    encoding = LocalEncoding(load_encoder(), batch_size, max_events)
    while True:
        events = source.read(max_events, seconds)
        done = _write(repo, feature_set, settings, encoding, events) if events else Streamed(0, 0, 0)
        source.acknowledge(events)
        yield done


def _write(
    repo: Path, feature_set: str, settings: CatalogSettings, encoding: LocalEncoding, events: Sequence[Event]
) -> Streamed:
    from sda_features.feature_store.offline_rows import offline_rows
    from sda_features.feature_store.online_rows import delete_online, write_online
    from sda_features.feature_store.repo import open_slots
    from sda_features.feature_store.to_online import materialize_view
    from sda_features.feature_store.versions import open_record, record_version, slot_for
    from sda_features.serving.layout import parse_item_id

    newest: dict[str, Event] = {}
    for event in events:
        if event.item is not None and event.item.get(settings.id_column) is not None:
            newest[str(event.item[settings.id_column])] = event
    upserts = [event.item for event in newest.values() if not event.deleted]
    slots = open_slots(repo, feature_set)
    with open_record(slots) as versions:
        if versions is not None and encoding.version not in versions.record().versions:
            raise FeatureStoreError(
                f"Version {encoding.version} of feature set {feature_set!r} is not complete. Write the catalogue with "
                "`sda-features materialize` first; then `stream` keeps it up to date."
            )
        with slot_for(slots, versions, encoding.version) as opened:
            rows, written = offline_rows(opened), 0
            stamp = rows.next_timestamp()
            for shard in _encoded(upserts, settings, encoding):
                table = rows_of(shard, encoding.version, stamp, opened.store_dtype)
                rows.write(table)
                if not write_online(opened, table):
                    materialize_view(repo, feature_set, slot=opened.slot)
                written += len(table)
            gone = [
                parse_item_id(item_id, opened.id_type) for item_id, event in newest.items() if event.deleted
            ]
            delete_online(opened, gone)
            rows.remove(gone, encoding.version, stamp)
            if versions is not None:
                record_version(versions, opened, encoding.version, promote=False)
    return Streamed(written, len(gone), len(events) - written - len(gone))


def _encoded(items: Sequence[Any], settings: CatalogSettings, encoding: LocalEncoding) -> Iterator[Any]:
    """Vectors of rows that the catalogue's own reader has checked."""
    if not items:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "events.jsonl")
        path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
        catalog = Catalog(settings.model_copy(update={"path": path, "max_bad_rows": 1.0}))
        yield from encoding.shards(catalog, {}, Progress())


def _event(position: bytes, fields: dict[bytes, bytes]) -> Event:
    named = {key.decode() if isinstance(key, bytes) else key: value for key, value in fields.items()}
    try:
        item = json.loads(named["item"])
    except (KeyError, ValueError):
        item = None
    return Event(position, item if isinstance(item, dict) else None, named.get("op") in (b"delete", "delete"))
