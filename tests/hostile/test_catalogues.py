"""Every hostile catalogue gives the rows and problems that are right, or one error; nothing else."""

import io
import os
import socket
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sda_features.catalog.rows import Catalog
from sda_features.cli.main import main
from sda_features.config import CatalogSettings
from sda_features.errors import CatalogError
from sda_features.logs.interactions import read_interactions
from sda_features.tables.cells import TEXT, UnusableColumn
from sda_features.tables.text import csv_rows, json_rows
from tests.hostile.file_cases import CASES, DAMAGED
from tests.hostile.table_cases import IMAGE_COLUMNS, MEMORY_COLUMNS

pytestmark = pytest.mark.hostile
REFUSED = [case for case in CASES if case.rows is None and "\x00" not in case.path]  # no argument holds NUL


def write(folder, case):
    if case.path == "d":
        (folder / "d").mkdir()
    for name, content in case.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            target.write_bytes(content)
        else:
            pq.write_table(content, target, row_group_size=1)
    return folder / (case.path or next(iter(case.files)))


def open_(path, **given):
    return Catalog(CatalogSettings.parse(path=path, max_bad_rows=1.0, **given))


def identified(case):
    return getattr(case, "name", None)


@pytest.mark.parametrize("case", CASES, ids=identified)
def test_a_catalogue_is_read_or_refused_with_one_message(tmp_path, case):
    path = write(tmp_path, case)
    if case.rows is None:
        with pytest.raises(CatalogError) as caught:
            list(open_(path, **case.settings).items())
        assert case.error in str(caught.value)
        assert len(str(caught.value)) < 2000
        return
    catalog = open_(path, **case.settings)
    items = list(catalog.items())
    assert {item.item_id: item.fields for item in items} == case.rows
    assert len(items) == len(case.rows)
    found = {(problem["row"], problem["reason"]) for problem in catalog.report.problems}
    assert found - set(case.problems) <= {(row, "missing_text") for row in range(1, catalog.rows + 1)}
    assert set(case.problems) <= found
    assert all("column" in p["detail"] for p in catalog.report.problems if p["reason"].startswith("unusable"))
    # Read in slices, as other processes do, it is the same.
    whole = catalog.report.problems
    parts = [item for part in catalog.slices() for item in catalog.items(batches=part.batches())]
    assert [(item.row, item.item_id, item.content_hash) for item in parts] == [
        (item.row, item.item_id, item.content_hash) for item in items
    ]
    assert [catalog.rows, len(whole)] == [sum(p.rows for p in catalog.slices()), len(whole)]


@pytest.mark.parametrize(
    ("column", "pictures"),
    [
        pytest.param(column, rows, id=name)
        for name, column, rows, _ in IMAGE_COLUMNS
        if isinstance(rows, tuple)
    ],
)
def test_pictures_of_every_usable_type_are_decoded(tmp_path, column, pictures):
    case = next(
        c
        for c in CASES
        if c.name.startswith("image column")
        and c.files["c.parquet"]["image"].equals(pa.chunked_array([column]))
    )
    items = open_(write(tmp_path, case)).items()
    assert tuple(item.row for item in items if item.image is not None) == pictures


@pytest.mark.parametrize(
    ("column", "texts"), [pytest.param(column, texts, id=name) for name, column, texts, _ in MEMORY_COLUMNS]
)
def test_types_that_no_file_holds(column, texts):
    if isinstance(texts, str):
        with pytest.raises(UnusableColumn, match=texts):
            TEXT.arrow(column)
    else:
        assert TEXT.arrow(column) == (list(texts), {})


@pytest.mark.parametrize(
    ("at", "content"), DAMAGED, ids=lambda value: value if isinstance(value, int) else ""
)
def test_a_flipped_byte_is_read_or_one_error(tmp_path, at, content):
    """Parquet pages have no checksum by default: what still reads is used, and a row is there or reported."""
    path = tmp_path / "c.parquet"
    path.write_bytes(content)
    try:
        catalog = open_(path)
        items = list(catalog.items())
    except CatalogError:
        return
    assert len(items) + catalog.report.bad_rows >= catalog.rows


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
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind.startswith("loop"):
            inside.symlink_to(inside)
        else:
            path.symlink_to(tmp_path / "nothing")
        with pytest.raises(
            CatalogError, match="neither a file nor|is not a file|does not exist|cannot be read"
        ):
            open_(path)


@pytest.mark.parametrize("case", REFUSED[::4], ids=identified)
def test_the_command_says_the_same_in_one_message(tmp_path, capsys, case):
    path = write(tmp_path, case)
    with pytest.raises(SystemExit) as ended:
        main(["materialize", str(path), "--model", "nowhere", "--repo", str(tmp_path)])
    out = capsys.readouterr()
    assert ended.value.code == 1
    assert "Traceback" not in out.err + out.out
    assert out.err.startswith("error: ")


# Ids come out of a file of every kind exactly as they went in.

anything = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda text: not text.isspace()
)
ids = st.lists(
    st.one_of(anything, st.integers(-(10**40), 10**40).map(str)), min_size=1, max_size=8, unique=True
)


def _csv(path, texts):
    quoted = (text.replace('"', '""') for text in texts)
    path.write_bytes(
        "".join(["item_id,position\n", *(f'"{text}",{n}\n' for n, text in enumerate(quoted))]).encode()
    )


def _json(path, texts):
    import json

    path.write_text(
        "".join(json.dumps({"item_id": text, "position": n}) + "\n" for n, text in enumerate(texts))
    )


def _parquet(path, texts):
    pq.write_table(pa.table({"item_id": texts, "position": range(len(texts))}), path)


def _folder(path, texts):
    path.mkdir(exist_ok=True)
    for n in (0, 1):
        _parquet(path / f"{n}.parquet", texts[n::2])


@pytest.mark.parametrize(
    ("name", "writer"), [("c.csv", _csv), ("c.jsonl", _json), ("c.parquet", _parquet), ("c", _folder)]
)
@settings(max_examples=40)
@given(texts=ids)
def test_ids_survive_exactly_in_catalogue_and_log(tmp_path_factory, name, writer, texts):
    path = tmp_path_factory.mktemp("ids") / name
    writer(path, texts)
    order = texts if writer is not _folder else texts[::2] + texts[1::2]
    catalog = open_(path)
    assert list(catalog.ids()) == order
    assert [item.item_id for item in catalog.items()] == order
    log = read_interactions(path, user_column="item_id")
    assert set(log.item_ids.to_pylist()) == set(log.user_ids.to_pylist()) == set(texts)


@settings(max_examples=40)
@given(numbers=st.lists(st.integers(-(10**40), 10**40), min_size=1, max_size=8, unique=True))
def test_numbers_in_json_are_ids_as_written(tmp_path_factory, numbers):
    path = tmp_path_factory.mktemp("ids") / "c.jsonl"
    path.write_text("".join(f'{{"item_id": {number}, "n": {number}}}\n' for number in numbers))
    items = list(open_(path).items())
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
