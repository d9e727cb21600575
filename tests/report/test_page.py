"""The report clicked through in a real browser: no console error, nothing loaded, nothing wider than a phone."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sda_features.report.charts import line_chart, share_grid
from sda_features.report.html import GalleryData, Section, render_report
from sda_features.report.thumbnails import make_sheets
from sda_features.workflows.inspect_vectors import Space, compare_spaces, inspect_space, kinds

ITEMS, SIDE = 1_500, 24  # two sheets of thumbnails

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
walk = pytest.importorskip("tests.report.page_walk")
pytestmark = pytest.mark.skipif(walk.CHROMIUM is None, reason="no Chromium or Chrome is on the PATH")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of items of five kinds, a third of them without a picture."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 5, ITEMS)
    text = (rng.normal(size=(5, 16))[kind] + 0.5 * rng.normal(size=(ITEMS, 16))).astype(np.float32)
    image = text + 0.5 * rng.normal(size=text.shape).astype(np.float32)
    image[::3] = 0
    columns = {
        "title": [f"item {number} <b>&amp;" for number in range(ITEMS)],
        "kind": [f"kind {value}" for value in kind],
        "genres": [f"genre {value % 7}, no. {value}" for value in rng.integers(0, 700, ITEMS)],
    }
    spaces = [Space("sda 1", "1", text, image), Space("sda 2", "2", text, np.roll(image, 1, axis=1))]
    pictures = [
        None if number % 3 == 0 else Image.new("RGB", (SIDE, SIDE), (40 * int(value), 90, 160))
        for number, value in enumerate(kind)
    ]
    mapped = np.flatnonzero(image.any(axis=1))
    shown = GalleryData(
        [f"id-{number:04}" for number in range(ITEMS)],
        [str(name) for name in columns["title"]],
        kinds(columns),
        np.array([picture is not None for picture in pictures]),
        make_sheets(pictures, SIDE, max_bytes=10**7),
        mapped,
        rng.random((len(mapped), 2), np.float32),
        {space.name: space.neighbours for space in spaces},
    )
    html = render_report(
        "Item vectors: sda",
        f"{ITEMS} items",
        [inspect_space(space, columns) for space in spaces],
        compare_spaces(*spaces),
        shown,
        [
            Section("training", "Training", "", [line_chart("loss", {"loss": [(1, 2.0), (2, 1.0)]})]),
            Section("gates", "Experts", "", [share_grid("text", ["layer 1"], ["1", "2"], [[0.2, 0.8]])]),
        ],
        shared_pictures=[(1, 12)],
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def test_every_part_answers_on_a_desk_and_on_a_phone_without_a_console_error(report: Path) -> None:
    with walk.chromium() as browser:
        for shape in ("light-1440", "dark-390"):
            with walk.opened(browser, report, shape) as (page, faults):
                walk.walk(page)
                assert faults == [], shape


def test_a_fault_of_the_page_would_be_seen(report: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(report.read_text(encoding="utf-8").replace("colour();\nif", "nonsense();\nif"))
    with walk.chromium() as browser, walk.opened(browser, broken, "light-1440") as (_, faults):
        assert any("nonsense" in fault for fault in faults)


def test_a_column_of_lists_counts_by_its_first_member() -> None:
    values = [f"drama {number % 9}, actor {number}" for number in range(90)]
    assert set(kinds({"genres": values, "title": [f"film {number}" for number in range(90)]})) == {
        "first of genres"
    }
