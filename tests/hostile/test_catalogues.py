"""Every hostile catalogue gives the rows and problems that are right, or one error; nothing else."""

import io
import os
import socket
import tracemalloc
from operator import attrgetter
from unittest.mock import Mock

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sda_features.catalog.rows import Catalog
from sda_features.errors import CatalogError
from sda_features.logs.interactions import read_interactions
from sda_features.tables.cells import TEXT, UnusableColumn
from sda_features.tables.text import csv_rows, json_rows
from tests.hostile.file_cases import CASES, LARGER
from tests.hostile.table_cases import MEMORY_COLUMNS, write_files
from tests.logs.test_interactions import write
from tests.shop import catalog

pytestmark = pytest.mark.hostile
REFUSED = [c for c in CASES if isinstance(c.result, str) and "\x00" not in c.path]  # no argument holds NUL


@pytest.mark.parametrize("case", CASES, ids=attrgetter("name"))
def test_a_catalogue_is_read_or_refused_with_one_message(tmp_path, case):
    path = write_files(tmp_path, case.files, case.path)
    if isinstance(case.result, str):
        with pytest.raises(CatalogError) as caught:
            list(Catalog(catalog(path)).items())
        assert case.result in str(caught.value)
        assert len(str(caught.value)) < 2000
        return
    opened = Catalog(catalog(path))
    items = list(opened.items())
    assert {item.item_id: item.fields for item in items} == case.result
    assert len(items) == len(case.result)
    found = {(problem["row"], problem["reason"]) for problem in opened.report.problems}
    expected = set(case.problems.items())
    assert found - expected <= {(row, "missing_text") for row in range(1, opened.rows + 1)}
    assert expected <= found
    assert all("column" in p["detail"] for p in opened.report.problems if p["reason"].startswith("unusable"))
    # Read in slices, as other processes do, it is the same.
    whole, parts, problems = opened.report.problems, [], []
    for part in opened.slices():
        parts += opened.items(batches=part.batches())
        problems += opened.report.problems
    assert [(item.row, item.item_id, item.content_hash) for item in parts] == [
        (item.row, item.item_id, item.content_hash) for item in items
    ]
    assert sorted(map(str, problems)) == sorted(map(str, whole))
    assert opened.rows == sum(part.rows for part in opened.slices())


PICTURES = [case for case in CASES if case.name.startswith("image column") and isinstance(case.result, dict)]


@pytest.mark.parametrize("case", PICTURES, ids=attrgetter("name"))
def test_pictures_of_every_usable_type_are_decoded(tmp_path, case):
    items = Catalog(catalog(write_files(tmp_path, case.files, case.path))).items()
    assert {item.row: item.image is not None for item in items} == {
        row: row not in case.problems for row in (1, 2, 3)
    }


@pytest.mark.parametrize(
    ("column", "texts"), [pytest.param(*case, id=name) for name, *case in MEMORY_COLUMNS]
)
def test_types_that_no_file_holds(column, texts):
    if isinstance(texts, str):
        with pytest.raises(UnusableColumn, match=texts):
            TEXT.arrow(column)
    else:
        assert TEXT.arrow(column) == (list(texts), {})


@pytest.mark.parametrize("at", range(0, len(LARGER), 23))
def test_a_flipped_byte_is_read_or_one_error(tmp_path, at):
    """Parquet pages have no checksum by default: what still reads is used, and a row is there or reported."""
    content = bytearray(LARGER)
    content[at] ^= 0xFF
    path = tmp_path / "c.parquet"
    path.write_bytes(content)
    try:
        opened = Catalog(catalog(path))
        items = list(opened.items())
    except CatalogError:
        return
    assert len(items) + opened.report.bad_rows >= opened.rows


def test_an_error_that_says_nothing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("sda_features.tables.files.csv_columns", Mock(side_effect=MemoryError()))
    (tmp_path / "c.csv").write_text("item_id\na\n")
    with pytest.raises(CatalogError, match="c.csv cannot be read: MemoryError"):
        Catalog(catalog(tmp_path / "c.csv"))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "kind", ["fifo", "fifo in a folder", "socket", "device", "loop", "loop in a folder", "dangling"]
)
def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path, kind):
    folder = tmp_path / "d"
    folder.mkdir()
    path = folder if "folder" in kind else tmp_path / "c.csv"
    inside = folder / "c.csv" if "folder" in kind else path
    with socket.socket(socket.AF_UNIX) as server:
        if kind.startswith("fifo"):
            os.mkfifo(inside)
        elif kind == "socket":
            server.bind(str(path))
        else:
            links = {"device": "/dev/zero", "dangling": tmp_path / "nothing"}
            inside.symlink_to(links.get(kind, inside))
        with pytest.raises(
            CatalogError, match="neither a file nor|is not a file|does not exist|cannot be read"
        ):
            Catalog(catalog(path))


@pytest.mark.parametrize("case", REFUSED[::4], ids=attrgetter("name"))
def test_the_command_says_the_same_in_one_message(tmp_path, fails, case):
    path = write_files(tmp_path, case.files, case.path)
    said = fails("materialize", path, "--model", "nowhere", "--repo", tmp_path)
    assert said.startswith("error: ")


# Ids come out of a file of every kind exactly as they went in.

anything = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda text: not text.isspace()
)
numbers = st.integers(-(10**40), 10**40)
ids = st.lists(st.one_of(anything, numbers.map(str)), min_size=1, max_size=8, unique=True)


@pytest.mark.parametrize("name", ["c.csv", "c.jsonl", "c.parquet", "c"])
@settings(max_examples=40)
@given(texts=ids)
def test_ids_survive_exactly_in_catalogue_and_log(tmp_path_factory, name, texts):
    path = tmp_path_factory.mktemp("ids") / name
    table = pa.table({"item_id": texts, "position": range(len(texts))})
    if path.suffix:
        write(path, table)
    else:
        path.mkdir()
        write(path / "0.parquet", table.slice(0, 1))
        write(path / "1.parquet", table.slice(1))
    opened = Catalog(catalog(path))
    assert list(opened.ids()) == texts
    assert [item.item_id for item in opened.items()] == texts
    log = read_interactions(path, user_column="item_id")
    assert set(log.item_ids.to_pylist()) == set(log.user_ids.to_pylist()) == set(texts)


@settings(max_examples=40)
@given(numbers=st.lists(numbers, min_size=1, max_size=8, unique=True))
def test_numbers_in_json_are_ids_as_written(tmp_path_factory, numbers):
    path = tmp_path_factory.mktemp("ids") / "c.jsonl"
    path.write_text("".join(f'{{"item_id": {number}, "n": {number}}}\n' for number in numbers))
    items = list(Catalog(catalog(path)).items())
    assert [item.item_id for item in items] == [item.fields["n"] for item in items] == list(map(str, numbers))


@pytest.mark.parametrize(
    ("read", "line"), [(json_rows, '{"item_id": "a", "t": "%s"}\n'), (csv_rows, "a,%s\n")]
)
def test_a_long_file_is_never_held(read, line):
    content = io.StringIO((line % ("x" * 1000)) * 5000, newline="")
    tracemalloc.start()
    try:
        assert sum(rows.count for rows in read(content, 100, ["a"])) >= 4999
        assert tracemalloc.get_traced_memory()[1] < 1_000_000  # bytes; the file has 5 million
    finally:
        tracemalloc.stop()
