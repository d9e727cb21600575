"""What a read of item vectors asks Redis and makes of the answers: pure logic, no input or output.

`Reader.read` is a generator that yields what to fetch and is sent what came, so that the client for
threads and the one for asyncio share every rule: which slot holds the wanted version, when to ask
again, what is refused.

Why a result never mixes versions: the version record is read after the vectors, in the same round
trip. If it is the record by which the slot was chosen, the slot held that version all the while,
since a slot is emptied only after the record has let go of it. If it moved, the reader asks again.
Each item's own adapter version is compared on top of that: a row of another one is not found.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from sda_features.errors import FeatureMismatchError, OnlineStoreError
from sda_features.serving import codec, layout
from sda_features.serving.blocks import Block
from sda_features.serving.cache import RowCache
from sda_features.serving.codec import Mask, Matrix
from sda_features.serving.layout import IdType
from sda_features.serving.pointer import Pointer, StoredVersion, pointer_key
from sda_features.serving.wire import Rows

ItemId: TypeAlias = str | int
Times: TypeAlias = npt.NDArray[np.datetime64]

logger = logging.getLogger(__name__)

_LOST = (
    "The version record of feature set {!r} is gone from the online store, and items may have rows in several "
    "slots: nothing says which version is live. Restore it with `sda-features versions --repair`."
)
OTHER_SLOTS = range(2, 5)  # looked into once when there is no record
ATTEMPTS = 4  # reads of one request before giving up on a record that keeps moving
NOT_A_TIME = int(np.iinfo(np.int64).min)  # how numpy stores NaT


@dataclass(frozen=True)
class Embeddings:
    """Vectors of n requested items, row i for item i; all of one version.

    Attributes:
        item_ids: the n ids, as requested.
        text: float32 [n, d], C-contiguous; zero where not found.
        text_found: bool [n].
        image: float32 [n, d], C-contiguous; zero where not found.
        image_found: bool [n].
        versions: n adapter versions; None where the item is unknown.
        event_times: datetime64[us] [n] in UTC, when the vectors were made; NaT where the item is unknown.
        seen: when the last materialisation of this version ended: then, every item was unchanged.
            None without a version record.
    """

    item_ids: tuple[ItemId, ...]
    text: Matrix
    text_found: Mask
    image: Matrix
    image_found: Mask
    versions: tuple[str | None, ...]
    event_times: Times
    seen: datetime | None = None

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def dim(self) -> int:
        """Dimension d of the vectors; 0 if none was found and the client was not told."""
        return int(self.text.shape[1])


@dataclass(frozen=True)
class Fetch:
    """What to fetch next; the arguments of `wire.fetch_fields`."""

    keys: Sequence[bytes] = ()
    fields: Sequence[bytes] = ()
    record_key: bytes | None = None
    sizes: Sequence[int] = ()


Reading: TypeAlias = Generator[Fetch, tuple[Rows, bytes | None], Embeddings]


class Reader:
    """The rules of reading one feature set; arguments as for `EmbeddingClient`.

    It keeps the version record that was read last. Threads may share it: the record is replaced in
    one assignment, and a read that went by an older one notices when the newer one comes back.
    """

    def __init__(
        self,
        *,
        project: str,
        feature_set: str = "sda",
        view: str | None = None,
        join_key: str = "item_id",
        id_type: IdType = "string",
        dim: int | None = None,
        version: str | None = None,
        max_age: timedelta | None = None,
        cache_items: int = 0,
    ) -> None:
        self.feature_set, self.view = feature_set, view or layout.view_name(feature_set)
        self.dim, self.version, self.max_age = dim, version, max_age
        self.cache = RowCache(cache_items) if cache_items else None
        self._keys = partial(layout.redis_keys, project=project, join_key=join_key, id_type=id_type)
        # A view that was named has no record, which is as good as an absent one.
        self._record_key = None if view else pointer_key(project, feature_set)
        self._sizes: dict[tuple[bytes, ...], tuple[int, ...]] = {}  # of the values that came last, by fields
        self._warned = False
        self._record: tuple[bytes | None, Pointer] | None = (None, Pointer()) if view else None

    def read(self, item_ids: Sequence[ItemId], version: str | None = None) -> Reading:
        """Read items: yields what to fetch, is sent what came, returns the result.

        Raises:
            FeatureMismatchError, OnlineStoreError: see `EmbeddingClient.get`.
        """
        if isinstance(item_ids, str | bytes):
            raise TypeError(f"Expected a list of item ids, got one id: [{item_ids!r}] would be a list of it.")
        ids = tuple(item_ids)
        version = version or self.version
        if self._record is None:
            _, record = yield Fetch(record_key=self._record_key)
            if record is None:
                yield from self._refuse_a_lost_record(ids)
            known, pointer = self._record = record, Pointer.parse(record)
        else:
            known, pointer = self._record
        for _ in range(ATTEMPTS):
            place = self._place(pointer, version)
            cache = self.cache if place.stored else None
            cached = cache.get(place.stored, ids) if cache else {}
            wanted = [item_id for item_id in ids if item_id not in cached] if cached else ids
            sizes = self._sizes.get(place.fields, ())
            rows, record = yield Fetch(self._keys(wanted), place.fields, self._record_key, sizes)
            if record is None and pointer.versions:
                self._warn_of_a_lost_record()  # and go by what it said: each row says its version
            elif record != known:
                known, pointer = self._record = record, Pointer.parse(record)
                if self._place(pointer, version) != place:
                    continue
            if cached:
                fetched = {**cached, **dict(zip(wanted, rows, strict=True))}
                rows = [fetched[item_id] for item_id in ids]
            found = self._decode(ids, rows, place)
            if cache:
                cache.put(place.stored, dict(zip(ids, rows, strict=True)))
            return found
        raise FeatureMismatchError(
            f"The version record of feature set {self.feature_set!r} changed during each of {ATTEMPTS} reads. "
            "Ask again; if it goes on, look for jobs that promote or materialize all the time."
        )

    def _refuse_a_lost_record(self, ids: Sequence[ItemId]) -> Generator[Fetch, tuple[Rows, bytes | None]]:
        """Without a record slot 1 is served, unless items have rows in other slots as well."""
        others = [layout.timestamp_field(layout.view_name(self.feature_set, slot)) for slot in OTHER_SLOTS]
        rows, _ = yield Fetch(self._keys(ids), others)
        if any(value is not None for row in rows for value in row):
            raise OnlineStoreError(_LOST.format(self.feature_set))

    def _warn_of_a_lost_record(self) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("%s Until then this client goes by the last one.", _LOST.format(self.feature_set))

    def _place(self, pointer: Pointer, version: str | None) -> _Target:
        """The slot that holds a version, by default the live one; without a record slot 1."""
        stored = pointer.versions.get(version or pointer.live or "")
        if stored is not None:
            return _target_of(layout.view_name(self.feature_set, stored.slot), stored.version, stored)
        if not pointer.versions and not pointer.writers:
            return _target_of(self.view, version)
        filling = [f"{writer.version} (incomplete)" for _, writer in sorted(pointer.writers.items())]
        held = ", ".join(sorted(pointer.versions) or filling)
        if version is None:
            raise FeatureMismatchError(
                f"No version of feature set {self.feature_set!r} is live; the online store holds {held}. "
                "Promote one of them."
            )
        raise FeatureMismatchError(
            f"Expected version {version!r} of feature set {self.feature_set!r} in the online store, which holds "
            f"{held}. Ask for one of these, or materialize that version."
        )

    def _decode(self, ids: tuple[ItemId, ...], rows: Rows, place: _Target) -> Embeddings:
        """The result that `rows` make, checked."""
        found = self._decode_block(ids, rows, place) if isinstance(rows, Block) else None
        found = found or self._decode_rows(ids, rows, place)
        forget_older(found, self.max_age)
        return found

    def _decode_block(self, ids: tuple[ItemId, ...], block: Block, place: _Target) -> Embeddings | None:
        """The common case, one version and no item missing; None for any other, errors too."""
        texts, images, versions, stamps = (block.column(field) for field in range(len(place.fields)))
        version = codec.decode_string(versions[0].tobytes())
        if (versions != versions[0]).any() or place.version not in (None, version):
            return None
        dim = self.dim or place.dim or codec.vector_dim(texts[0].tobytes(), ids[0])
        text, image = codec.decode_block(texts, dim), codec.decode_block(images, dim)
        if text is None or image is None:
            return None
        if (stamps == stamps[0]).all():
            times = np.full(len(ids), _microseconds(stamps[0].tobytes()), np.int64)
        else:
            times = np.array([_microseconds(stamp.tobytes()) for stamp in stamps], np.int64)
        event_times = times.view("datetime64[us]")
        text_found, image_found = np.ones((2, len(ids)), np.bool_)
        of_all = (version,) * len(ids)
        return Embeddings(ids, text, text_found, image, image_found, of_all, event_times, place.seen)

    def _decode_rows(self, ids: tuple[ItemId, ...], rows: Rows, place: _Target) -> Embeddings:
        columns = tuple(zip(*rows, strict=True)) if rows else ((),) * len(place.fields)
        texts, images, encoded, stamps = columns
        decoded = {value: codec.decode_string(value) for value in set(encoded)}  # they repeat
        versions = tuple(map(decoded.__getitem__, encoded))
        foreign = self._foreign(ids, columns, versions, place)
        if foreign:
            gone = [(None,) * len(columns) if item in foreign else row for item, row in enumerate(rows)]
            texts, images, _, stamps = columns = tuple(zip(*gone, strict=True))
            versions = tuple(None if item in foreign else version for item, version in enumerate(versions))
        dim = self.dim or place.dim or _first_dim(texts, ids) or _first_dim(images, ids)
        text, text_found = codec.decode_vectors(texts, dim, names=ids)
        image, image_found = codec.decode_vectors(images, dim, names=ids)
        times = np.fromiter(map(_microseconds, stamps), np.int64, len(stamps)).view("datetime64[us]")
        self._sizes[place.fields] = _common_sizes(columns)
        return Embeddings(ids, text, text_found, image, image_found, versions, times, place.seen)

    def _foreign(
        self,
        ids: Sequence[ItemId],
        columns: Sequence[Sequence[bytes | None]],
        versions: Sequence[str | None],
        place: _Target,
    ) -> set[int]:
        """Rows of another version than the others: without a record, than most of them.

        Raises:
            FeatureMismatchError: the caller named a version, and all that is there is of another.
        """
        texts, images, *_ = columns
        there = [row for row, values in enumerate(zip(texts, images, versions, strict=True)) if any(values)]
        counts = Counter(versions[row] for row in there)
        if not counts:
            return set()
        # Of as many the later one by name, so that requests agree.
        expected = place.version or max(counts, key=lambda version: (counts[version], str(version)))
        foreign = {row for row in there if versions[row] != expected}
        if place.stored is None and place.version and len(foreign) == len(there):
            raise FeatureMismatchError(
                f"Item {ids[there[0]]!r} has vectors of adapter version {versions[there[0]]!r}, expected "
                f"{expected!r}. Materialize {self.view} with that checkpoint, or ask for the version that is stored."
            )
        return foreign


def forget_older(found: Embeddings, max_age: timedelta | None) -> None:
    """Mark vectors last seen unchanged longer ago, or at an unknown time, as not found, in place."""
    if max_age is None:
        return
    limit = datetime.now(UTC) - max_age
    if found.seen is not None and found.seen >= limit:
        return
    instant = np.datetime64(limit.replace(tzinfo=None), "us")
    old = ~(found.event_times >= instant)  # NaT is neither
    for matrix, mask in ((found.text, found.text_found), (found.image, found.image_found)):
        matrix[old] = 0
        mask[old] = False


@dataclass(frozen=True)
class _Target:
    """Where to read, and what must be there."""

    fields: tuple[bytes, ...]
    version: str | None
    stored: StoredVersion | None
    dim: int  # 0 if the record does not say
    seen: datetime | None


@lru_cache(maxsize=64)
def _target_of(view: str, version: str | None, stored: StoredVersion | None = None) -> _Target:
    fields = [layout.hash_field(view, feature) for feature in layout.FEATURES]
    dim = stored.dim if stored else 0
    seen = _time(stored.written) if stored else None
    return _Target((*fields, layout.timestamp_field(view)), version, stored, dim, seen)


def _time(written: str) -> datetime | None:
    """An ISO time; None if it is none."""
    try:
        time = datetime.fromisoformat(written)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


@lru_cache(maxsize=4096)
def _microseconds(stamp: bytes | None) -> int:
    """Microseconds since 1970, as numpy stores them."""
    nanoseconds = codec.decode_timestamp(stamp)
    return NOT_A_TIME if nanoseconds is None else nanoseconds // 1000


def _common_sizes(columns: Sequence[Sequence[bytes | None]]) -> tuple[int, ...]:
    """Bytes of the values of each column; empty if they differ, or a value is missing or null."""
    if any(not value for column in columns for value in column):
        return ()
    sizes = [set(map(len, column)) for column in columns]  # type: ignore[arg-type]
    return tuple(size for (size,) in sizes) if set(map(len, sizes)) == {1} else ()


def _first_dim(values: Sequence[bytes | None], ids: Sequence[ItemId]) -> int:
    """Dimension of the first vector that is there; 0 without one."""
    return next((codec.vector_dim(value, name) for value, name in zip(values, ids, strict=True) if value), 0)
