"""Nearest items: exactly, from an index file, and as codes of residual k-means."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sda_features.artifacts import atomic_folder, check_folder, write_json
from sda_features.config import CatalogSettings
from sda_features.errors import FeatureMismatchError, SettingsError
from sda_features.evaluation.neighbours import nearest
from sda_features.evaluation.space import choose
from sda_features.results import Result, text_table
from sda_features.workflows.inspect_vectors import VIEWS, View, load_space, read_columns

FORMAT = 1
FILES = (
    *(f"{view}.{kind}" for view in VIEWS for kind in ("faiss", "parquet")),
    *("codes.parquet", "codebooks.npy", "manifest.json"),
)
LINKS, BUILD_WIDTH, SEARCH_WIDTH = 32, 100, 128  # of the graph (HNSW): M, efConstruction, efSearch
MOST_IN_GRAPH = 100_000  # a graph of a million rows takes a core many minutes; lists take half of one
LISTS, TRAINED_ON = 2048, 64  # of the inverted lists (IVF), and rows a list that k-means sees
LEAST_RECALL = 0.995  # at which no further lists are searched, on the sample
MEASURED = 500  # queries that recall is measured with
RECALL_OF = 10


@dataclass(frozen=True)
class Neighbour:
    """A near item: its name is its first text field, its cosine -1..1, of both modalities the mean of the two."""

    item_id: str
    name: str
    cosine: float


@dataclass(frozen=True)
class SimilarItems(Result):
    """The items nearest to one, nearest first."""

    item: str
    name: str
    by: View
    near: list[Neighbour]

    def __str__(self) -> str:
        rows = [[f"{near.cosine:.3f}", near.item_id, near.name] for near in self.near]
        table = text_table(rows, ["cosine", "item", "name"], ["right", "left", "left"])
        return f"{self.item}  {self.name}\n\n{table}"


def similar_items(
    repo: Path,
    feature_set: str,
    settings: CatalogSettings,
    item_id: str,
    *,
    by: View = "both",
    k: int = 10,
    version: str | None = None,
) -> SimilarItems:
    """The k nearest items of the catalogue by exact search.

    Raises:
        FeatureMismatchError: the item is not in the catalogue or has no vector of that kind.
        SDAError: catalogue or vectors cannot be read.
    """
    ids, columns = read_columns(settings)
    first = next(iter(columns.values()), ids)
    names = [name or item_id for name, item_id in zip(first, ids, strict=True)]
    if item_id not in ids:
        raise FeatureMismatchError(f"Expected an id of {settings.path}, such as {ids[0]!r}, got {item_id!r}.")
    own = ids.index(item_id)
    rows = load_space(repo, feature_set, ids, version).views[by]
    if not rows[own].any():
        what = {"text": "text vector", "image": "picture vector", "both": "two vectors"}[by]
        raise FeatureMismatchError(f"Item {item_id!r} has no {what} in feature set {feature_set!r}.")
    found = [other for other in nearest(rows[[own]], rows, k, own=[own])[0] if other >= 0]
    scale = 2 if by == "both" else 1
    near = [Neighbour(ids[other], names[other], float(rows[own] @ rows[other]) / scale) for other in found]
    return SimilarItems(item_id, names[own], by, near)


@dataclass(frozen=True)
class IndexWritten(Result):
    """What `write_index` made.

    Attributes:
        items: view -> items in its index.
        recall: view -> recall@10 against exact search on a sample.
        codes: levels and codes a level; None if none were asked for.
    """

    path: str
    version: str
    items: dict[View, int]
    recall: dict[View, float]
    codes: tuple[int, int] | None

    def __str__(self) -> str:
        lines = [
            f"{view:<6} {items:>9,} items  recall@{RECALL_OF} {self.recall[view]:.3f} against exact search"
            for view, items in self.items.items()
        ]
        if self.codes:
            lines.append(f"codes  {self.codes[0]} levels of {self.codes[1]}")
        return "\n".join([*lines, f"index  {self.path}, version {self.version}"])


def write_index(
    repo: Path,
    feature_set: str,
    settings: CatalogSettings,
    output: Path,
    *,
    version: str | None = None,
    codes: tuple[int, int] | None = None,
) -> IndexWritten:
    """Write a folder for retrieval: for each view `{view}.faiss` and `{view}.parquet`, and manifest.json.

    An index holds centred unit rows and is asked by inner product; position i of it is row i of its
    parquet file. Queries are rows of the same version, centred as these are.

    Args:
        settings: the catalogue, whose items are indexed.
        output: folder; an index of another version there is replaced.
        version: adapter version or its beginning; None: the live one.
        codes: (levels, codes a level): also codes.parquet, see `residual_codes`. Codebooks of an
            index of the same version at `output` are used again, so that codes stay what they were.

    Raises:
        ModuleNotFoundError: faiss is not installed.
        SDAError: catalogue or vectors cannot be read.
    """
    check_folder(output, FILES, "an index")
    faiss = _faiss()
    ids, _ = read_columns(settings)
    space = load_space(repo, feature_set, ids, version)
    known = _codebooks(output, space.version, codes)
    present = {view: np.flatnonzero(space.views[view].any(axis=1)) for view in VIEWS}
    recall: dict[View, float] = {}
    with atomic_folder(output) as temporary:
        for view, items in present.items():
            index, recall[view] = build_index(space.views[view][items])
            faiss.write_index(index, str(temporary / f"{view}.faiss"))
            table = pa.table({"item_id": [ids[item] for item in items]})
            pq.write_table(table, temporary / f"{view}.parquet")
        if codes is not None:
            rows = space.views["both"][present["both"]]
            codebooks = known if known is not None else fit_codebooks(rows, *codes)
            np.save(temporary / "codebooks.npy", codebooks, allow_pickle=False)
            now = pa.scalar(datetime.now(UTC), pa.timestamp("us", tz="UTC"))
            table = pa.table(  # as Feast reads it
                {
                    "item_id": pa.array([ids[item] for item in present["both"]], pa.string()),
                    "codes": pa.array(residual_codes(rows, codebooks).tolist(), pa.list_(pa.int32())),
                    "event_timestamp": pa.repeat(now, len(rows)),
                }
            )
            pq.write_table(table, temporary / "codes.parquet")
        counts = {view: len(items) for view, items in present.items()}
        written = IndexWritten(str(output), space.version, counts, recall, codes)
        write_json(
            temporary / "manifest.json",
            {"format": FORMAT, "feature_set": feature_set, "recall_of": RECALL_OF, **asdict(written)},
        )
    return written


def build_index(unit: NDArray[np.float32]) -> tuple[Any, float]:
    """A faiss index by inner product, and its recall@10 against exact search for a sample of its rows.

    A graph (HNSW) for up to `MOST_IN_GRAPH` rows, inverted lists (IVF) for more; of these as many
    are searched as `LEAST_RECALL` takes.

    Args:
        unit: float32 [n, d], rows of length 1.

    Raises:
        ModuleNotFoundError: faiss is not installed.
    """
    faiss = _faiss()
    rows, (items, dim) = np.ascontiguousarray(unit, np.float32), unit.shape
    queries = rows[choose(items, MEASURED, 0)]
    exact = nearest(queries, rows, min(RECALL_OF, items), rows_at_once=64)

    def recall() -> float:
        if not exact.size:
            return 1.0
        found = index.search(queries, exact.shape[1])[1]
        return float((exact[:, :, None] == found[:, None, :]).any(axis=2).mean())

    if items <= MOST_IN_GRAPH:
        index = faiss.IndexHNSWFlat(dim, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = BUILD_WIDTH, SEARCH_WIDTH
        index.add(rows)
        return index, recall()
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, LISTS, faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid, index.cp.seed = TRAINED_ON, 1
    index.train(rows)
    index.add(rows)
    reached = 0.0
    while reached < LEAST_RECALL and index.nprobe < LISTS:
        index.nprobe *= 2
        reached = recall()
    return index, reached


def fit_codebooks(rows: NDArray[np.float32], levels: int, size: int) -> NDArray[np.float32]:
    """Residual k-means: level l + 1 clusters what level l leaves over.

    Args:
        rows: float32 [n, d].
        levels: number of levels.
        size: codes a level, at most n.

    Returns:
        float32 [levels, size, d].
    """
    if size > len(rows):
        raise SettingsError(
            f"--codes asks for {size} codes a level, but only {len(rows)} items have both vectors."
        )
    faiss = _faiss()
    codebooks, residual = [], np.ascontiguousarray(rows, np.float32)
    for level in range(levels):
        means = faiss.Kmeans(rows.shape[1], size, niter=20, seed=level, min_points_per_centroid=1)
        means.train(residual)
        codebooks.append(means.centroids.copy())
        residual = residual - codebooks[-1][_closest(residual, codebooks[-1])]
    return np.stack(codebooks)


def residual_codes(rows: NDArray[np.float32], codebooks: NDArray[np.float32]) -> NDArray[np.int32]:
    """Codes of rows, int32 [n, levels], by codebooks [levels, size, d]: the closest entry at each level."""
    codes, residual = [], np.asarray(rows, np.float32)
    for book in codebooks:
        codes.append(_closest(residual, book))
        residual = residual - book[codes[-1]]
    return np.stack(codes, axis=1).astype(np.int32)


def _closest(rows: NDArray[np.float32], book: NDArray[np.float32]) -> NDArray[np.int64]:
    blocks = np.array_split(rows, max(1, len(rows) // 8192))
    norms = np.square(book).sum(axis=1)
    return np.concatenate([(norms - 2 * block @ book.T).argmin(axis=1) for block in blocks])


def _codebooks(folder: Path, version: str, codes: tuple[int, int] | None) -> NDArray[np.float32] | None:
    """Those of an earlier index of the same version and size."""
    if codes is None or not (folder / "codebooks.npy").is_file():
        return None
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if manifest.get("version") != version or tuple(manifest.get("codes") or ()) != codes:
        return None
    books: NDArray[np.float32] = np.load(folder / "codebooks.npy", allow_pickle=False)
    return books


def _faiss() -> Any:  # its annotations are not those of its wheels
    import faiss

    return faiss
