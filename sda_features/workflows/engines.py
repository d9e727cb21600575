"""Where a catalogue is encoded: the seam between `materialize` and one process, or many (ray_engine.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from tqdm import tqdm

from sda_features.catalog.rows import Catalog, Item
from sda_features.config import MODALITIES

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake.transaction import AddAction

    from sda_features.feature_store.offline_rows import Staging
    from sda_features.lvlm.encoded_items import EncodedItems
    from sda_features.lvlm.item_encoder import ItemEncoder
    from sda_features.serving.codec import StoreDtype

LoadEncoder = Callable[[], "ItemEncoder"]


@dataclass
class Progress:
    """What a run has done so far.

    Attributes:
        unchanged: items whose stored vectors are of this version and content.
        texts_cut: texts of which the encoder read less than the whole.
        bar: counts vectors; None: nobody looks.
    """

    unchanged: int = 0
    texts_cut: int = 0
    bar: tqdm[Any] | None = None

    def skipped(self, items: int) -> None:
        """Count items that are not encoded because they are stored."""
        self.unchanged += items
        self.made(items * len(MODALITIES))

    def made(self, vectors: int) -> None:
        """Count new vectors."""
        if self.bar is not None:
            self.bar.update(vectors)


@dataclass(frozen=True)
class Target:
    """Where an engine may write rows itself, from any process; `materialize` commits them.

    Attributes:
        version: adapter version of the rows.
        stamp: their event timestamp.
        store_dtype: how the numbers of a vector are stored.
    """

    staging: Staging
    version: str
    stamp: datetime
    store_dtype: StoreDtype

    def write(self, shard: EncodedItems) -> AddAction:
        """Write the rows of some items as a file that does not count yet."""
        return self.staging.write(rows_of(shard, self.version, self.stamp, self.store_dtype))


@dataclass(frozen=True)
class WrittenItems:
    """So many items whose rows an engine has written, and the files with them."""

    files: Sequence[AddAction]
    count: int


Stage = Callable[[], AbstractContextManager["Target | None"]]


class Encoding(Protocol):
    """An engine whose encoder is loaded."""

    @property
    def version(self) -> str:
        """Adapter version of the vectors."""

    def shards(
        self, catalog: Catalog, known: Mapping[str, str], progress: Progress, stage: Stage
    ) -> Iterator[EncodedItems | WrittenItems]:
        """Yield the vectors of all items but those of which `known` has the content hash.

        Every item comes once, in any order. The bad rows are in `catalog.report` afterwards.

        Args:
            known: item id -> content hash of the stored vectors of this version.
            progress: told what has been done.
            stage: where rows may be written instead, until the block ends.

        Raises:
            CatalogError: as soon as the share of bad rows is sure to exceed `max_bad_rows`.
        """


# Loads the encoder, to encode so many sequences and to yield so many items together; it and what it runs on
# are gone after the block.
Engine = Callable[[LoadEncoder, int, int], AbstractContextManager[Encoding]]


@dataclass(frozen=True)
class LocalEncoding:
    """`Encoding` in this process, in catalogue order; see `Engine`."""

    loaded: ItemEncoder
    batch_size: int
    shard_rows: int

    @property
    def version(self) -> str:
        """Adapter version of the vectors."""
        return self.loaded.version

    def shards(
        self, catalog: Catalog, known: Mapping[str, str], progress: Progress, stage: Stage | None = None
    ) -> Iterator[EncodedItems]:
        """Yield `shard_rows` items at a time; see `Encoding`."""
        return self.encode(catalog.items(known, shrink=self.loaded.shrink), known, progress)

    def encode(
        self, items: Iterable[Item], known: Mapping[str, str], progress: Progress
    ) -> Iterator[EncodedItems]:
        """As `shards`, for some items of a catalogue."""
        from sda_features.lvlm.encode import encode_items

        changed = _changed(items, known, progress)
        for shard in encode_items(self.loaded, changed, self.batch_size, self.shard_rows, progress.made):
            progress.texts_cut += shard.texts_cut
            yield shard


@contextlib.contextmanager
def local_engine(load_encoder: LoadEncoder, batch_size: int, shard_rows: int) -> Iterator[LocalEncoding]:
    """The `Engine` that needs nothing but this process."""
    yield LocalEncoding(load_encoder(), batch_size, shard_rows)


def rows_of(shard: EncodedItems, version: str, stamp: datetime, store_dtype: StoreDtype) -> pa.Table:
    """The offline rows of encoded items, as the slot stores them."""
    from sda_features.offline.schema import vectors_table

    return vectors_table(
        shard.item_ids,
        text=shard.text,
        text_found=shard.text_found,
        image=shard.image,
        image_found=shard.image_found,
        adapter_version=version,
        content_hashes=shard.content_hashes,
        event_timestamp=stamp,
        store_dtype=store_dtype,
    )


def _changed(items: Iterable[Item], known: Mapping[str, str], progress: Progress) -> Iterator[Item]:
    for item in items:
        if known.get(item.item_id) == item.content_hash:
            progress.skipped(1)
        else:
            yield item
