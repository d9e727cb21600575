"""`inspect`, `report`, `similar`, `index` and `gate` on a real repo with two versions and a broken third."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from sda_features.cli.main import cli
from sda_features.demo.catalogue import make_catalogue
from sda_features.report.thumbnails import make_sheets, thumbnail
from sda_features.workflows import materialize
from sda_features.workflows.doctor import examine
from sda_features.workflows.inspect_vectors import load_space, read_columns
from sda_features.workflows.similar import similar_items
from tests.shop import catalog, tiny_encoder
from tests.workflows.stores import with_column

ITEMS = 60


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, new_repo: Callable[..., Path]) -> Path:
    """items.parquet and a repo whose feature set `vanilla` holds the vectors of two models."""
    folder = tmp_path_factory.mktemp("report")
    make_catalogue(ITEMS).write(folder / "items.parquet")
    repo = new_repo(folder / "repo", feature_sets=["vanilla"], slots=4)
    write_placeholders(folder)
    for seed in range(3):
        name = "placeholders.parquet" if seed == 2 else "items.parquet"
        load = tiny_encoder(folder / f"model-{seed}", seed=seed)
        materialize(repo, "vanilla", catalog(folder / name), load, progress=False)
    return folder


def write_placeholders(folder: Path) -> None:
    """The catalogue with one picture for every second item."""
    items = pq.read_table(folder / "items.parquet")
    pictures = items["image"].to_pylist()
    one = next(picture for picture in pictures if picture)
    changed = [one if row % 2 else picture for row, picture in enumerate(pictures)]
    pq.write_table(with_column(items, "image", changed), folder / "placeholders.parquet")


def of(shop: Path) -> list[str]:
    """Options that name the feature set."""
    return ["--repo", str(shop / "repo"), "--feature-set", "vanilla"]


def invoke(*arguments: object) -> tuple[int, str]:
    """Exit status of a command, and what it says."""
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    return result.exit_code, result.output + str(result.exception or "")


def run(shop: Path, command: str, *arguments: object) -> str:
    """What a command says of the catalogue, which must succeed."""
    status, output = invoke(command, shop / "items.parquet", *arguments, *of(shop), "--max-bad-rows", 1)
    assert status == 0, output
    return output


def stored_versions(shop: Path) -> list[str]:
    return [entry["version"] for entry in json.loads(invoke("versions", *of(shop), "--json")[1])["versions"]]


def test_inspect_tells_two_versions_apart(shop):
    live, other = stored_versions(shop)[:2]
    found = json.loads(run(shop, "inspect", "--version", other, "--against", "@", "--json"))
    assert [space["version"] for space in found["spaces"]] == [other, live]
    assert found["spaces"][0]["items"] > ITEMS * 0.9
    assert 0 < found["change"]["kept"]["text"] < 1
    assert found["spaces"][0]["purity"]
    table = run(shop, "inspect", "--version", other, "--against", "@")
    assert "text finds picture, R@10" in table
    assert "neighbours kept" in table


def test_a_version_is_not_compared_with_itself(shop):
    arguments = (shop / "items.parquet", *of(shop), "--max-bad-rows", 1, "--against", "@")
    assert "itself" in invoke("inspect", *arguments)[1]


def test_the_report_holds_everything_it_shows(shop):
    page = shop / "report.html"
    run(shop, "report", "--version", stored_versions(shop)[1], "--against", "@", "-o", str(page))
    html = page.read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.S)[1])  # type: ignore[index]
    assert len(data["ids"]) == len(data["names"]) == len(data["pictured"])
    assert len(data["spaces"]) == 2
    assert {column["name"] for column in data["columns"]}
    assert not re.search(r'(src|href)="(?!#|data:)', html)
    assert data["sheets"][0].startswith("data:image/webp;base64,")


def gate(shop: Path, number: int, *arguments: str, items: str = "items.parquet") -> tuple[int, str, str]:
    """Exit status and output of `gate` for a version, and the version."""
    version = stored_versions(shop)[number]
    return *invoke("gate", version, shop / items, *of(shop), "--max-bad-rows", 1, *arguments), version


def promote(shop: Path, version: str) -> str:
    """What `promote --gated` says."""
    return invoke("promote", version, "--gated", *of(shop))[1]


def test_the_gate_lets_a_sound_version_pass(shop):
    limits = shop / "limits.toml"
    limits.write_text("min_recall = 0.0\nmax_spread = 1.0\n")  # both models are random
    version = stored_versions(shop)[1]
    assert "gate" in promote(shop, version)  # no verdict yet
    status, output, _ = gate(shop, 1, "--thresholds", str(limits), "--junit", str(shop / "gate.xml"))
    assert status == 0, output
    suite = ElementTree.parse(shop / "gate.xml").getroot()
    assert suite.get("failures") == "0"
    assert int(suite.get("tests") or 0) == len(suite) >= 10


def test_the_gate_stops_a_broken_picture_column(shop):
    limits = shop / "limits.toml"
    limits.write_text("min_recall = 0.0\nmax_spread = 1.0\n")
    status, output, version = gate(shop, 2, "--thresholds", str(limits), items="placeholders.parquet")
    assert status == 3
    failed = [line for line in output.splitlines() if line.startswith("| FAIL")]
    assert any("share their picture" in line for line in failed), output
    assert "did not pass" in promote(shop, version)
    assert "share their picture" in promote(shop, version)


def test_the_gate_stops_a_collapsed_space(shop):
    """Vectors that all but lie on their mean: the neighbours are those of the live version, the space is not."""
    ids, _ = read_columns(catalog(shop / "items.parquet"))
    live = load_space(shop / "repo", "vanilla", ids)

    def collapsed(rows: NDArray[np.float32]) -> list[list[float] | None]:
        found = rows.any(axis=1)
        mean = rows[found].mean(axis=0)
        moved = (mean + 0.01 * (rows - mean)).tolist()
        return [row if there else None for row, there in zip(moved, found, strict=True)]

    table = {"item_id": ids, "text": collapsed(live.text), "image": collapsed(live.image)}
    pq.write_table(pa.table(table), shop / "collapsed.parquet")
    given = ("--vectors", shop / "collapsed.parquet", "--text-vectors", "text", "--image-vectors", "image")
    status, output = invoke("materialize", *given, "--version", "collapsed", *of(shop))
    assert status == 0, output
    (shop / "strict.toml").write_text("min_recall = 0.0\nmax_spread = 0.9999\n")
    status, output, version = gate(shop, -1, "--thresholds", str(shop / "strict.toml"), "--json")
    checks = {check["name"]: check for check in json.JSONDecoder().raw_decode(output)[0]["checks"]}
    assert (status, version) == (3, "collapsed")
    assert not checks["spread of text vectors"]["passed"]
    assert not checks["spread of picture vectors"]["passed"]
    assert checks["stores agree"]["passed"]
    assert float(checks["neighbours kept"]["found"]) > 0.9
    assert "spread of text vectors" in promote(shop, version)


def test_similar_is_exact_search(shop):
    settings = catalog(shop / "items.parquet")
    ids, _ = read_columns(settings)
    similar = similar_items(shop / "repo", "vanilla", settings, ids[3], by="text", k=5)
    rows = load_space(shop / "repo", "vanilla", ids).views["text"]
    expected = np.argsort(-(rows @ rows[3]), kind="stable")
    assert [near.item_id for near in similar.near] == [ids[item] for item in expected if item != 3][:5]
    assert similar.name
    status, output = invoke("similar", ids[3], settings.path, *of(shop), "--max-bad-rows", 1, "--by", "text")
    assert status == 0, output
    assert similar.near[0].name in output


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")  # of faiss before 1.12
def test_an_index_finds_the_neighbours_and_its_codes_stay(shop):
    output = shop / "index"
    printed = run(shop, "index", "-o", str(output), "--codes", "2x8")
    assert "recall@10 1.000" in printed
    first = pq.read_table(output / "codes.parquet")
    run(shop, "index", "-o", str(output), "--codes", "2x8")
    assert pq.read_table(output / "codes.parquet")["codes"].to_pylist() == first["codes"].to_pylist()
    assert len({tuple(codes) for codes in first["codes"].to_pylist()}) > 8


def test_doctor_finds_no_fault_in_this_repo_and_one_in_an_empty_folder(shop, tmp_path):
    found = {finding.subject: finding for finding in examine(shop / "repo", str(shop / "model-0"))}
    assert [finding for finding in found.values() if finding.status == "fault"] == []
    assert {"repo", "online store", "memory", "model", "disk"} <= found.keys()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (model,) = [finding for finding in examine(tmp_path, str(tmp_path)) if finding.subject == "model"]
    assert "git lfs pull" in model.advice
    result = CliRunner().invoke(cli, ["doctor", "--repo", str(tmp_path), "--json"])
    assert result.exit_code == 1
    assert any(entry["status"] == "fault" for entry in json.loads(result.output)["findings"])


def test_text_of_the_catalogue_cannot_end_the_script(shop):
    from sda_features.report.html import GalleryData, render_report
    from sda_features.workflows.inspect_vectors import Space, inspect_space

    vectors = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    space = Space("<b>set</b>", "v", vectors, vectors)
    nasty = "</script><script>alert(1)</script>"
    everything = np.arange(6)
    shown = GalleryData(
        [nasty] * 6,
        [nasty] * 6,
        {nasty: [nasty, None] * 3},
        np.zeros(6, bool),
        make_sheets([None] * 6, 8, max_bytes=10**6),
        everything,
        np.zeros((6, 2), np.float32),
        {space.name: space.neighbours},
    )
    html = render_report(nasty, nasty, [inspect_space(space, {})], None, shown, shared_pictures=[(1, 12)])
    assert html.count("<script") == html.count("</script>") == 2
    assert "alert(1)</script>" not in html
    assert "<b>set</b>" not in html
    assert "</button> 12 items" in html


def test_thumbnails_stay_within_their_size():
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (2100, 32, 32, 3), np.uint8)
    pictures = [thumbnail(Image.fromarray(values), 32) for values in noise]
    whole = make_sheets(pictures, 32, max_bytes=10**9)
    assert len(whole.urls) == 3
    part = make_sheets(pictures, 32, max_bytes=whole.bytes - 1)
    assert len(part.urls) == 2
    assert part.bytes < whole.bytes
    assert make_sheets(pictures, 32, max_bytes=0).urls == []
