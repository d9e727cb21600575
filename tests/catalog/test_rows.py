import io
import json
import pickle

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sda_features.catalog.images import fit_within, open_image
from sda_features.catalog.rows import Catalog
from sda_features.config import CatalogSettings
from sda_features.errors import CatalogError
from tests.logs.test_interactions import write as write_table


def png(colour="red", size=(8, 6)):
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def write(path, rows):
    return write_table(path, pa.Table.from_pylist(rows))


def read(path, **settings):
    catalog = Catalog(CatalogSettings.parse(path=path, **settings))
    return list(catalog.items()), catalog


def rows(count):
    return [{"item_id": f"i{n}", "title": f"title {n}", "image": png()} for n in range(count)]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_formats_give_the_same_items(tmp_path, suffix):
    (tmp_path / "a.png").write_bytes(png("blue"))
    content = [
        {"item_id": "007", "title": 'a "quoted", long\nname', "brand": None, "image": "a.png"},
        {"item_id": "ü", "title": "b", "brand": "Oak", "image": "a.png"},
    ]
    items, catalog = read(write(tmp_path / f"items.{suffix}", content))
    assert [item.item_id for item in items] == ["007", "ü"]
    assert items[0].fields == {"title": 'a "quoted", long name'}
    assert items[1].fields == {"title": "b", "brand": "Oak"}
    assert [item.image.getpixel((0, 0)) for item in items if item.image] == [(0, 0, 255)] * 2
    assert catalog.report.problems == []
    assert [item.row for item in items] == [1, 2]


def test_lists_and_numbers_become_text_and_named_columns_keep_their_order(tmp_path):
    path = write(
        tmp_path / "items.parquet", [{"item_id": 7, "genres": ["a", "b"], "year": 1995, "z": "last"}]
    )
    items, _ = read(path, text_columns=("z", "genres", "year"))
    assert items[0].item_id == "7"
    assert list(items[0].fields.items()) == [("z", "last"), ("genres", "a, b"), ("year", "1995")]
    assert items[0].image is None


def test_bad_rows_are_reported_with_reason_and_row_and_keep_their_other_modality(tmp_path):
    cases = [
        ({}, None),
        ({"image": b"not an image"}, "broken_image"),
        ({"image": None}, "missing_image"),
        ({"title": "  "}, "missing_text"),
        ({"item_id": "i0"}, "duplicate_id"),
        ({"item_id": None}, "missing_id"),
        ({"image": png()[:40]}, "broken_image"),
        ({"image": png(size=(400, 300))}, "oversized_image"),
    ]
    path = write(
        tmp_path / "items.parquet", [row | case[0] for row, case in zip(rows(8), cases, strict=True)]
    )
    items, catalog = read(path, max_bad_rows=1, max_image_pixels=10_000, text_columns=("title",))
    report = catalog.report
    assert {(problem["row"], problem["reason"]) for problem in report.problems} == {
        (row, reason) for row, (_, reason) in enumerate(cases, start=1) if reason
    }
    assert [item.item_id for item in items] == ["i0", "i1", "i2", "i3", "i6", "i7"]
    by_id = {item.item_id: item for item in items}
    assert by_id["i1"].image is None
    assert by_id["i1"].fields == {"title": "title 1"}
    assert by_id["i3"].image is not None
    assert by_id["i3"].fields == {}
    assert report.bad_rows == 7

    target = tmp_path / "report.jsonl"
    report.write(target)
    written = [json.loads(line) for line in target.read_text().splitlines()]
    assert [problem["row"] for problem in written] == [2, 3, 4, 5, 6, 7, 8]
    assert sorted(map(str, written)) == sorted(map(str, report.problems))


def test_five_broken_images_among_a_hundred_pass_or_stop_by_the_limit(tmp_path):
    content = rows(100)
    for row in range(0, 50, 10):
        content[row]["image"] = b"\xff\xd8broken"
    path = write(tmp_path / "items.parquet", content)
    items, catalog = read(path, max_bad_rows=0.05)
    assert len(items) == 100
    assert str(catalog.report) == "5 of 100 rows have problems: 5 broken_image"
    with pytest.raises(CatalogError, match=r"above --max-bad-rows 0.04; repair rows or raise the limit"):
        read(path, max_bad_rows=0.04)


def test_duplicates_far_apart_are_found_and_the_first_is_kept(tmp_path):
    content = [{"item_id": f"i{n % 1500}", "title": f"t{n}"} for n in range(1600)]
    items, catalog = read(write(tmp_path / "items.parquet", content), max_bad_rows=1)
    assert len(items) == 1500
    assert items[99].fields == {"title": "t99"}
    assert catalog.report.reasons() == {"duplicate_id": 100}
    assert catalog.report.problems[0]["detail"] == "row 1 has this id and is kept"


def test_content_hash_follows_text_and_picture(tmp_path):
    def hashes(**change):
        content = rows(2)
        content[0].update(change)
        return [item.content_hash for item in read(write(tmp_path / "items.parquet", content))[0]]

    base = hashes()
    assert hashes() == base
    assert hashes(title="other")[0] != base[0]
    assert hashes(image=png("green"))[0] != base[0]
    assert hashes(title="other")[1] == base[1]


def test_a_known_item_is_not_decoded_and_a_bad_picture_is_reported_again(tmp_path, monkeypatch):
    content = rows(4)
    content[1]["image"] = b"broken"
    content[2]["image"] = None
    items, catalog = read(write(tmp_path / "items.parquet", content), max_bad_rows=1)
    known = {item.item_id: item.content_hash for item in items}
    reasons = catalog.report.reasons()
    decoded = []

    def count(encoded, settings):
        decoded.append(encoded)
        return open_image(encoded, settings)

    monkeypatch.setattr("sda_features.catalog.pictures.open_image", count)
    again = list(catalog.items(known))
    assert [(item.item_id, item.fields, item.content_hash) for item in again] == [
        (item.item_id, item.fields, item.content_hash) for item in items
    ]
    assert decoded == [b"broken"]
    assert catalog.report.reasons() == reasons == {"broken_image": 1, "missing_image": 1}
    known["i3"] = "another"
    assert [item.image is not None for item in catalog.items(known)] == [False, False, False, True]


def test_ids_are_those_of_the_items_and_repeat(tmp_path):
    content = [{"item_id": item_id, "title": "x"} for item_id in ("b", None, " a ", "b")]
    _, catalog = read(write(tmp_path / "items.parquet", content), max_bad_rows=1)
    assert list(catalog.ids()) == ["b", " a ", "b"]


def test_a_cell_too_many_is_told(tmp_path):
    (tmp_path / "a.csv").write_text("item_id,title\n1,a\n2,b,c\n")
    with pytest.raises(CatalogError, match="Expected 2 columns, got 3"):
        read(tmp_path / "a.csv")


def test_an_unknown_column_lists_the_known_ones(tmp_path):
    path = write(tmp_path / "items.parquet", rows(1))
    with pytest.raises(
        CatalogError, match=r"no column 'name', 'photo'. Its columns are item_id, title, image"
    ):
        read(path, text_columns=("name",), image_column="photo")


def test_fit_within_keeps_the_aspect_and_never_enlarges():
    assert fit_within(Image.new("RGB", (512, 256)), 256).size == (256, 128)
    assert fit_within(Image.new("RGB", (5000, 2)), 256).size == (256, 1)
    assert fit_within(Image.new("RGB", (20, 10)), 256).size == (20, 10)


def partitioned(folder):
    """Ten items in two folders, two rows a row group."""
    table = pa.Table.from_pylist([{**row, "image": b"broken"} for row in rows(10)])
    for name, start in {"a": 0, "b": 5}.items():
        (folder / f"shelf={name}").mkdir(parents=True)
        pq.write_table(table.slice(start, 5), folder / f"shelf={name}" / "0.parquet", row_group_size=2)
    return folder


def test_a_partitioned_folder_is_the_same_catalogue_at_a_path_and_at_a_url(tmp_path):
    folder = partitioned(tmp_path / "run=3")  # a key above the catalogue is no column of it
    items, _ = read(folder, max_bad_rows=1)
    assert [item.item_id for item in items] == [f"i{n}" for n in range(10)]
    assert items[7].fields == {"title": "title 7", "shelf": "b"}
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/partitioned", recursive=True)
    for url in (f"file://{folder}", "memory://partitioned"):
        same, opened = read(url, max_bad_rows=1)
        assert same == items
        assert CatalogSettings.model_validate_json(opened.settings.model_dump_json()) == opened.settings
    memory.rm("/partitioned", recursive=True)


def test_slices_read_in_another_process_give_the_same_items_and_report(tmp_path):
    """Two duplicates, in other slices than the rows that they repeat; slices survive pickling."""
    folder = partitioned(tmp_path / "items")
    write(folder / "z.parquet", [{**row, "image": b"broken"} for row in (*rows(2), *rows(11)[10:])])
    items, whole = read(folder, max_bad_rows=1)
    assert whole.report.reasons()["duplicate_id"] == 2
    slices = pickle.loads(pickle.dumps(whole.slices()))  # noqa: S301
    assert [part.start for part in slices] == [1, 3, 5, 6, 8, 10, 11]
    assert [part.rows for part in slices] == [2, 2, 1, 2, 2, 1, 3]
    worker = pickle.loads(pickle.dumps(whole.for_workers()))  # noqa: S301
    found, problems = [], []
    for part in reversed(slices):
        found += worker.items(batches=part.batches())
        problems += worker.report.problems
    assert sorted(found, key=lambda item: item.row) == items
    other = Catalog(whole.settings)
    other.add_problems(problems)
    assert other.report.bad_rows == whole.report.bad_rows
    strict = Catalog(CatalogSettings.parse(path=folder, max_bad_rows=0.5))
    with pytest.raises(CatalogError, match="above --max-bad-rows 0.5"):
        strict.add_problems(problems)
