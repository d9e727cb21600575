"""Catalogue, offline rows, online bytes, the trainers' matrix: do they say the same of every item?"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from sda_features.catalog.rows import Catalog
from sda_features.config import CatalogSettings
from sda_features.errors import ParityError
from sda_features.results import Result
from sda_features.serving import codec
from sda_features.serving.layout import IMAGE, TEXT
from sda_features.workflows.given_vectors import GIVEN

if TYPE_CHECKING:
    import redis

    from sda_features.feature_store.repo import FeatureSet

REPAIR = "Encode them again, offline and online: `sda-features materialize` with the same options and {}."
COLUMNS = {"text": TEXT, "image": IMAGE}


@dataclass(frozen=True)
class Verified(Result):
    """What `verify` compared, all of it equal.

    Attributes:
        view: feature view that was read.
        version: adapter version of its rows.
        items: items whose catalogue row was compared with the offline row.
        vectors: vectors that were compared bit for bit.
        online: whether the online store was read; it is if it is a Redis server.
    """

    view: str
    version: str
    items: int
    vectors: int
    online: bool

    def __str__(self) -> str:
        online = "Redis and " if self.online else "(the online store is not a Redis server and was not read) "
        return (
            f"catalogue  {self.items:,} items are stored as they are, nothing else is\n"
            f"vectors    {self.vectors:,} are the same in the parquet parts, {online}the trainers' matrix\n"
            f"version    {self.version} in {self.view}"
        )


def verify(
    repo: Path,
    feature_set: str,
    catalog_settings: CatalogSettings,
    *,
    version: str | None = None,
    sample: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Verified:
    """Compare what is stored of the items of a catalogue; the first difference is an error.

    Ids and content hashes of the catalogue are compared with the parquet parts, which are read
    directly. Their vectors are compared with the matrix that trainers get through Feast's offline
    store, and with the bytes in Redis.

    Args:
        version: adapter version; None: the live one.
        sample: compare the vectors of so many random items; None: of all. Ids and hashes are
            always compared for all.
        seed: of the sample.
        progress: show a bar on standard error.

    Raises:
        ParityError: the first difference: which item, what was expected and what is there.
        CatalogError, FeatureStoreError, OnlineStoreError: something cannot be read.
    """
    from sda_features.feature_store.matrices import read_matrices
    from sda_features.feature_store.online_rows import online_server
    from sda_features.feature_store.versions import open_version
    from sda_features.offline.parts import newest_batches, stored_rows
    from sda_features.offline.stored_hashes import RowOfId
    from sda_features.offline.table import damaged_files

    catalog = Catalog(catalog_settings)
    opened = open_version(repo, feature_set, version)
    if damaged := damaged_files(opened.folder):
        raise ParityError(
            f"{len(damaged)} files of {opened.view.name} are damaged, such as {damaged[0].name} in {opened.folder}: "
            f"{sum(file.rows for file in damaged):,} rows. {REPAIR.format('--repair')}"
        )
    stored = stored_rows(opened.folder)
    versions = sorted(pc.unique(stored["adapter_version"]).to_pylist())
    if len(versions) != 1:
        raise ParityError(
            f"Expected rows of one version in {opened.view.name}, got {', '.join(versions) or 'none'}."
        )
    count = len(stored)
    items = _check_catalog(catalog, stored)
    chosen = np.ones(count, np.bool_)
    if sample is not None and sample < count:
        chosen[:] = False
        chosen[np.random.default_rng(seed).choice(count, sample, replace=False)] = True
    ids = stored["item_id"].filter(pa.array(chosen)).combine_chunks()
    del stored
    vectors = done = start = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        online_server(opened) as server,
        tqdm(desc="comparing", total=len(ids), unit="item", disable=not progress) as bar,
    ):
        (text, _), (image, _), _ = read_matrices(opened, RowOfId(ids), folder=Path(folder))
        for batch in newest_batches(opened.folder):
            rows = batch.filter(pa.array(chosen[start : start + len(batch)]))
            here = slice(done, done + len(rows))
            start, done = start + len(batch), done + len(rows)
            if not rows["item_id"].equals(ids[here]):
                raise ParityError(f"{opened.folder} was changed while it was read. Verify again.")
            vectors += _check_matrices(rows, {"text": text[here], "image": image[here]})
            if server is not None:
                _check_online(server, opened, rows)
            bar.update(len(rows))
    return Verified(opened.view.name, versions[0], items, vectors, server is not None)


def _check_catalog(catalog: Catalog, rows: pa.Table) -> int:
    """Every usable item of the catalogue is stored as it is, and nothing else; return their number.

    Of vectors that were given, the ids alone are compared: what they were made of is not known.
    """
    from sda_features.offline.stored_hashes import StoredHashes, missing

    gone = missing(rows["item_id"], catalog.ids())
    if len(gone):
        raise ParityError(
            f"Item {pc.min(gone.cast(pa.string())).as_py()!r} is stored, but not in the catalogue ({len(gone):,} such "
            "items). Materialize the catalogue again; it deletes what is gone."
        )
    hashes = StoredHashes(rows)
    items = 0
    for item in catalog.items(hashes):
        if not item.fields and item.image is None and hashes.get(item.item_id) != item.content_hash:
            continue  # nothing of it can be encoded: what was stored before stays
        stored = hashes.get(item.item_id)
        if stored is None:
            raise ParityError(
                f"Item {item.item_id!r} is in the catalogue, row {item.row}, but not stored. Materialize again."
            )
        if stored != item.content_hash and not stored.startswith(GIVEN):
            raise ParityError(
                f"Item {item.item_id!r}, row {item.row} of the catalogue, has changed since it was encoded: content "
                f"hash {item.content_hash}, stored {stored}. Materialize again."
            )
        items += 1
    return items


def _check_matrices(rows: pa.RecordBatch, trained: Mapping[str, np.ndarray]) -> int:
    """The trainers' matrices [n, d] are the rows of the parts; return how many vectors there are."""
    from sda_features.offline.schema import matrix_of

    count = 0
    for modality, column in COLUMNS.items():
        expected, found = matrix_of(rows[column])
        count += int(found.sum())
        got = trained[modality]
        expected = expected if expected.shape[1] else np.zeros_like(got)
        different = expected.view(np.uint32) != got.view(np.uint32)  # bits: -0.0 is not 0.0
        if different.any():
            row, position = np.argwhere(different)[0].tolist()
            raise ParityError(
                f"Item {rows['item_id'][row].as_py()!r}: {column} in the parquet parts has {expected[row, position]!r} "
                f"at position {position}, in the trainers' matrix stands {got[row, position]!r}."
            )
    return count


def _check_online(server: redis.Redis, opened: FeatureSet, rows: pa.RecordBatch) -> None:
    """Redis holds the very bytes that the rows make."""
    from sda_features.feature_store.online_rows import online_view
    from sda_features.serving.wire import fetch_fields

    view = online_view(opened)
    ids = rows["item_id"].to_pylist()
    values, _ = fetch_fields(server, view.keys(ids), [*view.fields, view.time_field])
    names = [*view.features, "event_timestamp"]
    expected = [_encoded(rows[name]) for name in names]
    for row, (item_id, stored) in enumerate(zip(ids, values, strict=True)):
        for position, name in enumerate(names):
            if stored[position] != expected[position][row]:
                raise ParityError(
                    f"Item {item_id!r}: {name} in the online store is {_shown(stored[position])}, and in the parquet "
                    f"parts {_shown(expected[position][row])}. {REPAIR.format(f'--again {item_id}')}"
                )


def _encoded(column: pa.Array) -> list[bytes]:
    """The values of a column as ValueProtos, or times as Timestamps."""
    from sda_features.offline.schema import matrix_of

    if pa.types.is_timestamp(column.type):
        moments = column.cast(pa.int64()).to_pylist()  # microseconds
        return [codec.encode_timestamp(m // 1_000_000, m % 1_000_000 * 1000) for m in moments]
    if pa.types.is_string(column.type):
        return [codec.encode_string(text) for text in column.to_pylist()]
    if pa.types.is_binary(column.type):
        payloads = column.to_pylist()
        return [
            b"" if value is None else codec.value_header("bytes", len(value)) + value for value in payloads
        ]
    return codec.encode_vectors(*matrix_of(column))


def _shown(value: bytes | None) -> str:
    if value is None:
        return "missing"
    return f"{len(value)} bytes {value[:12].hex(' ')}..." if value else "null"
