"""The pictures of a catalogue's rows, fetched and decoded ahead in threads, within a bound on memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from PIL.Image import Image

from sda_features.catalog.fetch import Fetcher
from sda_features.catalog.images import (
    LARGE,
    decode_image,
    decoding_bytes,
    image_problems,
    open_image,
    read_image_bytes,
)
from sda_features.config import CatalogSettings
from sda_features.errors import ImageProblem

ROWS_AHEAD = 128
FETCHERS = 16  # threads, which mostly wait for servers and disks; others decode, one a core
DECODED_BYTES = 256 << 20  # of pictures that are being decoded or wait
PENDING = "-unreachable"  # ends the content hash of an item without the picture that it should have


@dataclass(frozen=True)
class Row:
    """A catalogue row whose id is usable, before its picture is read.

    Attributes:
        number: position in the catalogue, from 1.
        item_id: the id, as text.
        fields: text column -> value.
        image: the value of the image column.
        reported: reasons that are in the report already.
    """

    number: int
    item_id: str
    fields: dict[str, str]
    image: bytes | str | None
    reported: frozenset[str]


@dataclass(frozen=True)
class Picture:
    """What has become of a row's picture.

    Attributes:
        content_hash: see `catalog.Item`.
        image: RGB, or None: there is none, it is not usable, or the item is known already.
        problem: why it is not usable, or None.
    """

    content_hash: str
    image: Image | None
    problem: ImageProblem | None


def pictures_ahead(
    rows: Iterable[Row],
    settings: CatalogSettings,
    known: Mapping[str, str],
    shrink: Callable[[Image], Image] | None,
    wanted: bool,
) -> Iterator[tuple[Row, Picture]]:
    """Yield rows with their pictures, in order.

    Args:
        rows: what is read, at most `ROWS_AHEAD` further than what is yielded.
        settings: where pictures are, and limits.
        known: item id -> content hash; a picture that is unchanged is not decoded, and an item whose
            picture cannot be reached keeps its hash.
        shrink: makes a picture as small as it is needed, in the thread that decodes it.
        wanted: False: rows have no pictures.
    """
    fetcher = Fetcher(settings.image_hosts, settings.max_image_bytes, settings.image_timeout)
    budget = _Budget(DECODED_BYTES)

    def decode(encoded: bytes, number: int) -> Image:
        opened = open_image(encoded, settings)
        budget.admit(number, decoding_bytes(opened))
        image = None
        try:
            decoders = giants if opened.width * opened.height > LARGE else others
            image = decoders.submit(_decoded, opened, settings, shrink).result()
            return image
        finally:
            budget.decoded(number, image)

    def picture(row: Row, number: int) -> Picture:
        digest = hashlib.blake2b(json.dumps(row.fields).encode(), digest_size=16)
        known_hash = known.get(row.item_id)
        image = problem = None
        try:
            if wanted:
                encoded = read_image_bytes(row.image, settings, fetcher.fetch)
                digest.update(encoded)
                if digest.hexdigest() != known_hash:
                    image = decode(encoded, number)
        except ImageProblem as error:
            problem = error
            digest.update(error.reason.encode())  # so that a bad picture is decoded, and reported, every time
            if error.transient:
                if known_hash and not known_hash.endswith(PENDING):
                    return Picture(known_hash, None, problem)
                return Picture(digest.hexdigest() + PENDING, None, problem)
        return Picture(digest.hexdigest(), image, problem)

    ahead: deque[tuple[Row, int, Future[Picture]]] = deque()

    def first() -> tuple[Row, Picture]:
        row, number, waiting = ahead.popleft()
        done = waiting.result()
        budget.taken(number)
        return row, done

    with (
        contextlib.closing(fetcher),
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as others,
        ThreadPoolExecutor(1) as giants,  # each thread keeps what its largest picture took
        ThreadPoolExecutor(FETCHERS) as workers,
    ):
        try:
            for number, row in enumerate(rows):
                ahead.append((row, number, workers.submit(picture, row, number)))
                if len(ahead) > ROWS_AHEAD:
                    yield first()
            while ahead:
                yield first()
        finally:
            budget.close()
            workers.shutdown(wait=False, cancel_futures=True)


def _decoded(opened: Image, settings: CatalogSettings, shrink: Callable[[Image], Image] | None) -> Image:
    image = decode_image(opened, settings)
    with image_problems(settings):
        return shrink(image) if shrink else image


class _Budget:
    """Bounds the memory of pictures that are being decoded or wait for the reader.

    The oldest row that is not taken is admitted whatever its size, so there is always one that goes on.
    """

    def __init__(self, size: int):
        self._size = size
        self._held: dict[int, int] = {}  # row -> bytes
        self._oldest, self._closed = 0, False
        self._changed = threading.Condition()

    def admit(self, number: int, size: int) -> None:
        """Wait until row `number` may take `size` bytes."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._closed or number == self._oldest or sum(self._held.values()) + size <= self._size
                )
            )
            if self._closed:
                raise ImageProblem("image_unreachable", "nobody reads on")
            self._held[number] = size

    def decoded(self, number: int, image: Image | None) -> None:
        """Row `number`, which was admitted, keeps only `image`."""
        with self._changed:
            self._held[number] = 0 if image is None else image.width * image.height * 4  # as Pillow holds RGB
            self._changed.notify_all()

    def taken(self, number: int) -> None:
        """The reader has row `number`."""
        with self._changed:
            self._held.pop(number, None)
            self._oldest = number + 1
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
