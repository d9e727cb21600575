"""Catalogue to vectors to Feast: the incremental run behind `sda-features materialize`."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from sda_features.catalog.rows import Catalog, CatalogReport
from sda_features.config import MODALITIES, CatalogSettings
from sda_features.errors import CatalogError, FeatureStoreError, SettingsError
from sda_features.results import Result
from sda_features.workflows.engines import (
    Encoding,
    Engine,
    LoadEncoder,
    Progress,
    Target,
    WrittenItems,
    local_engine,
    rows_of,
)
from sda_features.workflows.given_vectors import VectorTable

if TYPE_CHECKING:
    from sda_features.feature_store.offline_rows import OfflineRows
    from sda_features.feature_store.repo import FeatureSet


@dataclass(frozen=True)
class MaterializeResult(Result):
    """What `materialize` did.

    Attributes:
        view: feature view that was written.
        version: adapter version of its vectors.
        live: version that readers get now.
        encoded: items encoded in this run.
        unchanged: items whose stored vectors are of this version and content.
        removed: items that were stored and are gone from the catalogue.
        texts_cut: texts of this run of which the encoder read less than the whole.
        online_rows: items of the view, all seen in the online store afterwards.
        report: bad catalogue rows.
    """

    view: str
    version: str
    live: str
    encoded: int
    unchanged: int
    removed: int
    texts_cut: int
    online_rows: int
    report: CatalogReport

    def as_dict(self) -> dict[str, Any]:
        """See `Result`; of the report its count."""
        values = {name: value for name, value in vars(self).items() if name != "report"}
        return {**values, "bad_rows": self.report.bad_rows}

    def __str__(self) -> str:
        lines = [
            f"catalogue  {self.report}",
            f"encoded    {self.encoded:,} items, {self.unchanged:,} unchanged, {self.removed:,} removed",
        ]
        if self.texts_cut:
            lines.append(
                f"texts      {self.texts_cut:,} are longer than the model reads; their ends were left out"
            )
        lines.append(f"online     {self.online_rows:,} items in {self.view}, version {self.version}")
        if self.live != self.version:
            lines.append(
                f"live       {self.live}; to serve the new version: sda-features promote {self.version}"
            )
        return "\n".join(lines)


def materialize(
    repo: Path,
    feature_set: str,
    source: CatalogSettings | VectorTable,
    load_encoder: LoadEncoder | None = None,
    *,
    engine: Engine = local_engine,
    batch_size: int = 32,
    shard_rows: int = 1024,
    promote: bool = False,
    max_removed: float = 0.1,
    repair: bool = False,
    again: Collection[str] = (),
    progress: bool = True,
) -> MaterializeResult:
    """Encode the items of a catalogue and write their vectors to Feast, offline then online.

    Vectors of another version than the stored ones go to a free slot of the feature set, and are
    not served before they are promoted; the first version is live at once. Vectors of a stored
    version are brought up to date in place. A feature set with one slot, or with an online store
    that is not Redis, has no versions: slot 1 is written over, and what it holds is live.

    Each shard becomes one offline part as soon as it is encoded. A run that follows an interrupted
    one, or a change of the catalogue, encodes only items whose content or version is not stored,
    and deletes those that are gone. An item whose row is no longer usable keeps its vectors; the
    report names it.

    Args:
        source: the catalogue, or vectors that are there already; these need no encoder and no engine.
        load_encoder: gives the encoder; called after repo, catalogue and online store have been
            found usable, because a model takes long to load.
        engine: where it is loaded and run: `engines.local_engine`, or `ray_engine.ray_engine` with
            its settings bound.
        batch_size: sequences encoded together.
        shard_rows: items of one offline part.
        promote: make the version live when it is complete.
        max_removed: share of the stored items that may be gone from the catalogue; more look like
            the wrong or half a catalogue, and nothing is done.
        repair: look whether the files of the stored rows are as they were written, and encode the items
            of those that are not again.
        again: ids of items that are encoded again, although they are stored.
        progress: show a bar on standard error.

    Raises:
        CatalogError, FeatureStoreError, OnlineStoreError, CheckpointError, EngineError: see the message.
    """
    from sda_features.feature_store.offline_rows import offline_rows
    from sda_features.feature_store.online_rows import delete_online
    from sda_features.feature_store.repo import open_slots
    from sda_features.feature_store.to_online import materialize_view
    from sda_features.feature_store.versions import open_record, record_version, slot_for
    from sda_features.offline.stored_hashes import StoredHashes

    if isinstance(source, VectorTable):
        catalog: Catalog | VectorTable = source
        loading: AbstractContextManager[Encoding] = contextlib.nullcontext(source)
    elif load_encoder is None:
        raise SettingsError("Give an encoder for the items of a catalogue.")
    else:
        catalog = Catalog(source)
        loading = engine(load_encoder, batch_size, shard_rows)
    slots = open_slots(repo, feature_set)
    with open_record(slots) as versions:
        if promote and versions is None:
            raise FeatureStoreError(
                f"--promote is for feature sets with versions; {slots[0].view.name} is written over and served as it "
                "is. Versions need a Redis server as online store and two slots (`sda-features init --slots 2`)."
            )
        with loading as encoding, slot_for(slots, versions, encoding.version) as opened:
            rows = offline_rows(opened, repair=repair)
            stored = rows.stored()
            gone = _gone(stored["item_id"], catalog, source.path, max_removed)
            kept = pc.and_(
                pc.equal(stored["adapter_version"], encoding.version),
                pc.invert(pc.is_in(stored["item_id"].cast(pa.string()), pa.array(again, pa.string()))),
            )
            known = StoredHashes(stored.filter(kept))
            del stored, kept  # their memory serves what follows
            stamp = rows.next_timestamp()
            encoded, done = _encode(opened, rows, catalog, encoding, known, stamp, progress)
            del known
            delete_online(opened, gone)  # before the rows that name them
            rows.remove(gone, encoding.version, stamp)
            end = max(stamp, datetime.now(UTC))
            online = materialize_view(repo, feature_set, end, slot=opened.slot, progress=progress)
            live = encoding.version
            if versions:
                record = record_version(versions, opened, encoding.version, promote=promote)
                live = record.live or live
    return MaterializeResult(
        online.view,
        encoding.version,
        live,
        encoded,
        done.unchanged,
        len(gone),
        done.texts_cut,
        online.rows,
        catalog.report,
    )


def _encode(
    opened: FeatureSet,
    rows: OfflineRows,
    catalog: Catalog | VectorTable,
    encoding: Encoding,
    known: Mapping[str, str],
    stamp: datetime,
    progress: bool,
) -> tuple[int, Progress]:
    """Write a part for each shard of items that are not `known`; return how many they were, and the rest."""
    from sda_features.feature_store.capacity import check_space

    encoded = 0

    @contextlib.contextmanager
    def stage() -> Iterator[Target | None]:
        with rows.staging() as place:
            yield Target(place, encoding.version, stamp, opened.store_dtype) if place else None

    with tqdm(
        desc="encoding", total=len(MODALITIES) * catalog.rows, unit="vector", disable=not progress
    ) as bar:
        done = Progress(bar=bar)
        for shard in encoding.shards(catalog, known, done, stage):  # type: ignore[arg-type]
            if isinstance(shard, WrittenItems):
                count, size = shard.count, sum(file.size for file in shard.files)
                write = partial(rows.commit, shard.files)
            else:
                table = rows_of(shard, encoding.version, stamp, opened.store_dtype)
                count, size, write = len(table), table.nbytes, partial(rows.write, table)
                del table
            if not encoded:  # the first shard shows how large a row is
                check_space(opened, catalog.rows - len(known), size // max(1, count))
            write()
            encoded += count
            del shard, write  # not in memory beside the next ones
    return encoded, done


def _gone(
    stored: pa.ChunkedArray, catalog: Catalog | VectorTable, where: Path | str, max_removed: float
) -> list[str | int]:
    """Stored ids that the catalogue lacks.

    Raises:
        CatalogError: they are more than the share `max_removed`.
    """
    from sda_features.offline.stored_hashes import missing

    if not len(stored):
        return []
    gone: list[str | int] = missing(stored, catalog.ids()).to_pylist()
    if len(gone) > max_removed * len(stored):
        raise CatalogError(
            f"{len(gone):,} of {len(stored):,} stored items, such as {gone[0]!r}, are not in "
            f"{where}: above --max-removed {max_removed:g}. Nothing was changed. Give the whole "
            "catalogue, or raise the limit to delete their vectors."
        )
    return gone
