"""`inspect` and `report` on a real repo with two versions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sda_features.cli.main import cli
from sda_features.config import BackboneSettings, CatalogSettings, PromptSettings
from sda_features.demo.catalogue import make_catalogue
from sda_features.demo.model import build_tiny_model
from sda_features.feature_store.init import init_repo
from sda_features.lvlm.checkpoint import unadapted
from sda_features.report.thumbnails import make_sheets, thumbnail
from sda_features.workflows import materialize
from tests.feast_repo import apply, redis_config

ITEMS = 60


@pytest.fixture(scope="module")
def shop(
    tmp_path_factory: pytest.TempPathFactory, redis_server: tuple[str, int], new_project: Callable[[], str]
) -> Path:
    """items.parquet and a repo whose feature set `vanilla` holds the vectors of two models."""
    folder = tmp_path_factory.mktemp("report")
    make_catalogue(ITEMS).write(folder / "items.parquet")
    repo = folder / "repo"
    repo.mkdir()
    (repo / "feature_store.yaml").write_text(redis_config(new_project(), redis_server))
    init_repo(repo, feature_sets=["vanilla"], slots=2)
    apply(repo)
    for seed in range(2):
        model = folder / f"model-{seed}"
        build_tiny_model(model, ["title is oak table"], hidden_size=64, layers=1, vision_layers=1, seed=seed)
        settings = BackboneSettings.parse(model=str(model), quantization="none", device="cpu")
        load = lambda: unadapted(settings, PromptSettings())  # noqa: B023, E731
        catalog = CatalogSettings.parse(path=folder / "items.parquet", max_bad_rows=1.0)
        materialize(repo, "vanilla", catalog, load, progress=False)
    return folder


def run(shop: Path, command: str, *arguments: str) -> str:
    options = ["--repo", str(shop / "repo"), "--feature-set", "vanilla", "--max-bad-rows", "1"]
    result = CliRunner().invoke(cli, [command, str(shop / "items.parquet"), *options, *arguments])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


def stored_versions(shop: Path) -> list[str]:
    result = CliRunner().invoke(
        cli, ["versions", "--repo", str(shop / "repo"), "--feature-set", "vanilla", "--json"]
    )
    return [entry["version"] for entry in json.loads(result.output)["versions"]]


def test_inspect_tells_two_versions_apart(shop: Path) -> None:
    live, other = stored_versions(shop)
    found = json.loads(run(shop, "inspect", "--version", other, "--against", "@", "--json"))
    assert [space["version"] for space in found["spaces"]] == [other, live]
    assert found["spaces"][0]["items"] > ITEMS * 0.9
    assert 0 < found["change"]["kept"]["text"] < 1
    assert found["spaces"][0]["purity"]
    table = run(shop, "inspect", "--version", other, "--against", "@")
    assert "text finds picture, R@10" in table
    assert "neighbours kept" in table


def test_a_version_is_not_compared_with_itself(shop: Path) -> None:
    options = ["--repo", str(shop / "repo"), "--feature-set", "vanilla", "--max-bad-rows", "1"]
    result = CliRunner().invoke(cli, ["inspect", str(shop / "items.parquet"), *options, "--against", "@"])
    assert "itself" in str(result.exception)


def test_the_report_holds_everything_it_shows(shop: Path) -> None:
    page = shop / "report.html"
    run(shop, "report", "--version", stored_versions(shop)[1], "--against", "@", "-o", str(page))
    html = page.read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.S)[1])  # type: ignore[index]
    assert len(data["ids"]) == len(data["names"]) == len(data["pictured"])
    assert len(data["spaces"]) == 2
    assert {column["name"] for column in data["columns"]}
    assert not re.search(r'(src|href)="(?!#|data:)', html)
    assert data["sheets"][0].startswith("data:image/webp;base64,")


def test_text_of_the_catalogue_cannot_end_the_script(shop: Path) -> None:
    from sda_features.report.html import Shown, render_report
    from sda_features.workflows.inspection import Space, inspect_space

    vectors = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    space = Space("<b>set</b>", "v", vectors, vectors)
    nasty = "</script><script>alert(1)</script>"
    everything = np.arange(6)
    shown = Shown(
        [nasty] * 6,
        [nasty] * 6,
        {nasty: [nasty, None] * 3},
        np.zeros(6, bool),
        make_sheets([None] * 6, 8, max_bytes=10**6),
        everything,
        np.zeros((6, 2), np.float32),
        {space.name: space.neighbours(everything, 3)},
    )
    html = render_report(nasty, nasty, [inspect_space(space, {})], None, shown)
    assert html.count("<script") == html.count("</script>") == 2
    assert "alert(1)</script>" not in html
    assert "<b>set</b>" not in html


def test_thumbnails_stay_within_their_size() -> None:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (2100, 32, 32, 3), np.uint8)
    pictures = [thumbnail(Image.fromarray(values), 32) for values in noise]
    whole = make_sheets(pictures, 32, max_bytes=10**9)
    assert len(whole.urls) == 3
    part = make_sheets(pictures, 32, max_bytes=whole.bytes - 1)
    assert len(part.urls) == 2
    assert part.bytes < whole.bytes
    assert make_sheets(pictures, 32, max_bytes=0).urls == []
