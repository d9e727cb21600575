"""From a catalogue and its stored vectors to the report."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from sda_features.report.thumbnails import PER_SHEET, make_sheets, thumbnail
from sda_features.results import Result
from sda_features.workflows.inspect_vectors import COMMON, Space, inspect_spaces, kinds, load_spaces

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_ITEMS = 20_000  # on one page; of a larger catalogue a random choice
LANDMARKS = 3_000  # items that the projection is computed for; the others are put between their nearest
SIDE = 72  # of a thumbnail, in pixels
CURVES = {  # charts of training: title -> name of the line -> field of training_log.jsonl
    "loss": {"loss": "loss"},
    "teacher entropy, share of its largest": {"teacher entropy": "teacher_entropy"},
    "text finds picture, held-out items": {"R@1": "recall@1", "R@10": "recall@10"},
}


@dataclass(frozen=True, eq=False)
class ShownItem:
    """What the page says of an item: its texts by column, and RGB or None."""

    item_id: str
    fields: dict[str, str]
    thumbnail: Image | None

    @property
    def name(self) -> str:
        """The first text, or the id."""
        return next(iter(self.fields.values()), self.item_id)


def read_items(settings: CatalogSettings, *, progress: bool = True) -> tuple[list[ShownItem], Sequence[str]]:
    """Every usable item, and the names of the text columns.

    Raises:
        CatalogError: see `Catalog`.
    """
    catalog = Catalog(settings)
    bar = tqdm(catalog.items(), "reading catalogue", catalog.rows, unit="item", disable=not progress)
    items = [ShownItem(item.item_id, item.fields, thumbnail(item.image, SIDE)) for item in bar]
    return items, catalog.text_columns


def shared_pictures(thumbnails: Sequence[Image | None]) -> list[tuple[int, int]]:
    """(first item, items) of pictures that at least `COMMON` items have, most frequent first."""
    hashes = [
        None if small is None else hashlib.blake2b(small.tobytes(), digest_size=8).digest()
        for small in thumbnails
    ]
    counts = Counter(filter(None, hashes)).most_common(8)
    return [(hashes.index(name), items) for name, items in counts if items >= COMMON]


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
        version, against: see `load_spaces`.
        run: folder that `adapt` wrote, for curves and gates.
        recommenders: folders of recommenders' runs, for their table.
        max_megabytes: largest size of the pictures in the file.
        progress: show bars on standard error.

    Raises:
        SDAError: catalogue, vectors or a run cannot be read.
    """
    items, names = read_items(settings, progress=progress)
    columns = {name: [item.fields.get(name) for item in items] for name in names}
    spaces = load_spaces(repo, feature_set, [item.item_id for item in items], version, against)
    inspection = inspect_spaces(spaces, columns)
    chosen = choose(len(items), MOST_ITEMS, 0)
    some = [items[place] for place in chosen]
    thumbnails = [item.thumbnail for item in some]
    shown = [space.only(chosen) for space in spaces]
    mapped, places = project(shown[0])
    sheets = make_sheets(thumbnails, SIDE, max_bytes=int(max_megabytes * 1e6))
    pictured = np.array([small is not None for small in thumbnails], bool)
    pictured[len(sheets.urls) * PER_SHEET :] = False
    html = render_report(
        f"Item vectors: {feature_set}",
        f"{len(items):,} items of {settings.path}; {' against '.join(space.name for space in spaces)}",
        inspection.spaces,
        inspection.change,
        GalleryData(
            [item.item_id for item in some],
            [item.name for item in some],
            kinds({name: [item.fields.get(name) for item in some] for name in names}),
            pictured,
            sheets,
            mapped,
            places,
            {space.name: space.neighbours for space in shown},
        ),
        [*training_sections(run), *recommender_sections(recommenders)],
        shared_pictures=shared_pictures(thumbnails),
        map_note=f"t-SNE of text and picture together, {len(mapped):,} items that have both"
        + (f", of {len(items):,} in the catalogue." if len(some) < len(items) else "."),
        footer=f"{len(sheets.urls)} sheets of thumbnails, {sheets.bytes / 1e6:.1f} MB; this file loads nothing else.",
    )
    with atomic_file(output) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return ReportWritten(inspection.spaces, inspection.change, output, len(html.encode()))


def project(space: Space) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
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
    landmarks = items[choose(len(items), LANDMARKS, 0)]
    perplexity = min(30.0, (len(landmarks) - 1) / 3)
    fitted = TSNE(
        perplexity=perplexity, init="pca", metric="cosine", random_state=0, max_iter=500
    ).fit_transform(rows[landmarks])
    places = np.zeros((len(rows), 2), np.float32)
    places[landmarks] = fitted
    others = np.setdiff1d(items, landmarks)
    if len(others):
        near = nearest(rows[others], rows[landmarks], 5)
        jitter = np.random.default_rng(0).normal(0, 0.004 * np.ptp(fitted), (len(others), 2))
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
