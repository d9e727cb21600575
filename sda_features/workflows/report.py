"""From a catalogue and its stored vectors to the report."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sda_features.artifacts import atomic_file
from sda_features.catalog.rows import Catalog
from sda_features.config import CatalogSettings
from sda_features.errors import SettingsError
from sda_features.evaluation.neighbours import nearest
from sda_features.evaluation.space import choose
from sda_features.report.charts import line_chart, share_grid
from sda_features.report.conflict import conflict_chart
from sda_features.report.html import GalleryData, Section, render_report
from sda_features.report.tables import metrics_table
from sda_features.report.thumbnails import make_sheets, thumbnail
from sda_features.results import Result
from sda_features.workflows.inspect_vectors import (
    COMMON,
    Space,
    compare_spaces,
    inspect_space,
    kinds,
    load_spaces,
)

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

MOST_ITEMS = 20_000  # on one page; of a larger catalogue a random choice
LANDMARKS = 3_000  # items that the projection is computed for; the others are put between their nearest
SIDE = 72  # of a thumbnail, in pixels
CURVES = {  # charts of training: title -> name of the line -> field of training_log.jsonl
    "loss": {"loss": "loss"},
    "teacher entropy, share of its largest": {"teacher entropy": "teacher_entropy"},
    "text finds picture, held-out items": {"R@1": "recall@1", "R@10": "recall@10"},
}


@dataclass(frozen=True, eq=False)
class CatalogContent:
    """What the catalogue says of n items.

    Attributes:
        ids: n ids.
        names: the first text column, or the id.
        columns: text column -> n values.
        thumbnails: RGB or None, n.
        picture_hashes: of the thumbnail; None without a picture.
    """

    ids: list[str]
    names: list[str]
    columns: dict[str, list[str | None]]
    thumbnails: list[Image | None]
    picture_hashes: list[str | None]

    def shared_pictures(self) -> list[tuple[int, int]]:
        """(first item, items) of pictures that at least `COMMON` items have, most frequent first."""
        counts = Counter(filter(None, self.picture_hashes))
        return [
            (self.picture_hashes.index(name), items)
            for name, items in counts.most_common(8)
            if items >= COMMON
        ]

    def only(self, chosen: NDArray[np.int64]) -> CatalogContent:
        """Some of the items."""

        def pick(values: list[T]) -> list[T]:
            return [values[item] for item in chosen]

        columns = {name: pick(values) for name, values in self.columns.items()}
        return CatalogContent(
            pick(self.ids), pick(self.names), columns, pick(self.thumbnails), pick(self.picture_hashes)
        )


def read_catalog_content(
    settings: CatalogSettings, *, side: int = SIDE, progress: bool = True
) -> CatalogContent:
    """Read names, columns and thumbnails of every usable item.

    Raises:
        CatalogError: see `Catalog`.
    """
    catalog = Catalog(settings)
    shelf = CatalogContent([], [], {name: [] for name in catalog.text_columns}, [], [])
    for item in tqdm(catalog.items(), "reading catalogue", catalog.rows, unit="item", disable=not progress):
        shelf.ids.append(item.item_id)
        shelf.names.append(next(iter(item.fields.values()), item.item_id))
        for name, values in shelf.columns.items():
            values.append(item.fields.get(name))
        small = thumbnail(item.image, side)
        shelf.thumbnails.append(small)
        digest = small and hashlib.blake2b(small.tobytes(), digest_size=8).hexdigest()
        shelf.picture_hashes.append(digest or None)
    return shelf


@dataclass(frozen=True)
class ReportWritten(Result):
    """The numbers of `inspect`, the HTML file, and its size in bytes."""

    spaces: list[dict[str, Any]]
    change: dict[str, Any] | None
    path: Path
    bytes: int

    def __str__(self) -> str:
        return f"{self.path}  {self.bytes / 1e6:.1f} MB; open it in a browser"


def write_report(
    output: Path,
    repo: Path,
    feature_set: str,
    settings: CatalogSettings,
    *,
    version: str | None = None,
    against: str | None = None,
    run: Path | None = None,
    recommenders: Sequence[Path] = (),
    max_megabytes: float = 40,
    progress: bool = True,
) -> ReportWritten:
    """Write the report of a version to `output`.

    Args:
        output: the HTML file.
        repo: an applied Feast repo.
        feature_set: name of the feature set.
        settings: the catalogue.
        version: adapter version or its beginning; None: the live one.
        against: `FEATURE_SET`, `@VERSION` or `FEATURE_SET@VERSION` to show side by side.
        run: folder that `adapt` wrote, for curves and gates.
        recommenders: folders of recommenders' runs, for their table.
        max_megabytes: largest size of the pictures in the file.
        progress: show bars on standard error.

    Raises:
        SDAError: catalogue, vectors or a run cannot be read.
    """
    shelf = read_catalog_content(settings, progress=progress)
    spaces = load_spaces(repo, feature_set, shelf.ids, version, against)
    numbers = [inspect_space(space, shelf.columns) for space in spaces]
    change = compare_spaces(*spaces) if len(spaces) > 1 else None
    chosen = choose(len(shelf.ids), MOST_ITEMS, 0)
    shared = shelf.only(chosen)
    shown = [space.only(chosen) for space in spaces]
    everything = np.arange(len(chosen))
    mapped, places = project(shown[0])
    sheets = make_sheets(shared.thumbnails, SIDE, max_bytes=int(max_megabytes * 1e6))
    covered = len(sheets.urls) * 1024
    html = render_report(
        f"Item vectors: {feature_set}",
        f"{len(shelf.ids):,} items of {settings.path}; {' against '.join(space.name for space in spaces)}",
        numbers,
        change,
        GalleryData(
            shared.ids,
            shared.names,
            kinds(shared.columns),
            np.array([picture is not None for picture in shared.thumbnails], bool) & (everything < covered),
            sheets,
            mapped,
            places,
            {space.name: space.neighbours for space in shown},
        ),
        [*training_sections(run), *recommender_sections(recommenders)],
        shared_pictures=shared.shared_pictures(),
        map_note=f"t-SNE of text and picture together, {len(mapped):,} items that have both"
        + (f", of {len(shelf.ids):,} in the catalogue." if len(chosen) < len(shelf.ids) else "."),
        footer=f"{len(sheets.urls)} sheets of thumbnails, {sheets.bytes / 1e6:.1f} MB; this file loads nothing else.",
    )
    with atomic_file(output) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return ReportWritten(numbers, change, output, len(html.encode()))


def project(space: Space, *, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Places of the items with both vectors on a plane.

    t-SNE of up to `LANDMARKS` items; every other item is put at the mean place of its five nearest
    landmarks, so that the time does not grow with the square of the catalogue.

    Returns:
        int64 [m] items, float32 [m, 2] places in 0..1.
    """
    from sklearn.manifold import TSNE

    rows = space.views["both"]
    items = np.flatnonzero(rows.any(axis=1))
    if len(items) < 5:
        return items, np.full((len(items), 2), 0.5, np.float32)
    landmarks = items[choose(len(items), LANDMARKS, seed)]
    perplexity = min(30.0, (len(landmarks) - 1) / 3)
    fitted = TSNE(
        perplexity=perplexity, init="pca", metric="cosine", random_state=seed, max_iter=500
    ).fit_transform(rows[landmarks])
    places = np.zeros((len(rows), 2), np.float32)
    places[landmarks] = fitted
    others = np.setdiff1d(items, landmarks)
    if len(others):
        near = nearest(rows[others], rows[landmarks], 5)
        jitter = np.random.default_rng(seed).normal(0, 0.004 * np.ptp(fitted), (len(others), 2))
        places[others] = fitted[near].mean(axis=1) + jitter
    low, high = places[items].min(axis=0), places[items].max(axis=0)
    return items, ((places[items] - low) / np.maximum(high - low, 1e-9)).astype(np.float32)


def training_sections(run: Path | None) -> Iterator[Section]:
    """Curves, gates and conflict of an `adapt` run, as far as it wrote them."""
    if run is None:
        return
    log = run / "training_log.jsonl"
    if not log.is_file():
        raise SettingsError(
            f"Expected a folder that `sda-features adapt` wrote at {run}; it has no {log.name}."
        )
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    charts = []
    for title, lines in CURVES.items():
        points = {
            name: [(record["step"], record[key]) for record in records if record.get(key) is not None]
            for name, key in lines.items()
        }
        if any(points.values()):
            charts.append(line_chart(title, points))
    yield Section("training", "Training", f"{len(records):,} steps of {run}.", charts)
    if grids := gate_charts(run / "checkpoint"):
        note = "Weight of each expert by adapted layer: which expert serves what. Eq. 6 of the paper."
        yield Section("gates", "Experts", note, grids)
    conflict = run / "conflict.json"
    if conflict.is_file():
        rows = [
            {name: float("nan") if value is None else value for name, value in row.items()}
            for row in json.loads(conflict.read_text(encoding="utf-8"))["conflict"]
        ]
        yield Section(
            "conflict", "Gradient conflict", "Negative: text and pictures pull apart.", [conflict_chart(rows)]
        )


def gate_charts(checkpoint: Path) -> list[str]:
    """One grid a modality, experts across and layers down; none for a checkpoint without experts."""
    from sda_features.lvlm.checkpoint import expert_gates

    weights = expert_gates(checkpoint)  # [layers, M, E]
    if weights is None:
        return []
    layers = [f"layer {number + 1}" for number in range(len(weights))]
    experts = [f"expert {number + 1}" for number in range(weights.shape[2])]
    return [
        share_grid(name, layers, experts, weights[:, position].tolist())
        for position, name in enumerate(("text", "picture"))
    ]


def recommender_sections(folders: Sequence[Path]) -> Iterator[Section]:
    """The table of recommenders' runs."""
    if not folders:
        return
    from sda_features.evaluation.runs import read_run

    table = metrics_table({folder.name: read_run(folder).manifest["metrics"] for folder in folders})
    lines = [line.strip().strip("|").split("|") for line in table.splitlines() if line.strip()]
    cells = [[cell.strip() for cell in line] for line in lines]
    yield Section("recommenders", "Recommenders", "", (), [(cells[0], cells[2:])])
