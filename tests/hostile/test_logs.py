"""Hostile interaction logs and files of vectors; one rule of ids in all four places."""

import datetime as dt
import uuid

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sda_features.catalog.rows import Catalog
from sda_features.errors import CatalogError, FeatureMismatchError, InteractionsError
from sda_features.logs.interactions import index_interactions, read_interactions
from sda_features.serving.layout import id_text
from sda_features.workflows.features import read_vectors
from tests.hostile.table_cases import binary_as_text, write_files
from tests.shop import catalog

pytestmark = pytest.mark.hostile

HEAD = b"user_id,item_id,timestamp\n"
REVIEWS = b"user_id,item_id,timestamp,review\n" + b"".join(
    b'u%d,i%d,%d,"first line, %s\n\n""second"" line"\n' % (n % 50, n % 70, n, b"x" * 400) for n in range(4000)
)


LINE = b'{"user_id": "u", "item_id": "a", "timestamp": 1}\n'


def table(**columns):
    return pa.table({"user_id": ["u", "u"], "item_id": ["b", "a"], "timestamp": [2, 1], **columns})


TIMES = [
    ("int64", pa.array([2, 1]), True),
    ("uint8", pa.array([2, 1], pa.uint8()), True),
    ("double", pa.array([2.5, 1.5]), True),
    ("decimal", pa.array([2, 1], pa.decimal128(20, 3)), True),
    ("date", pa.array([2, 1], pa.date32()), True),
    ("date beyond 9999", pa.array([10**8, 1], pa.date32()), True),
    ("timestamp of 2^60 ms", pa.array([2**60, 1], pa.timestamp("ms")), True),
    ("zone unknown", pa.array([2, 1], pa.timestamp("ms", "Mars/Base")), True),
    ("text of integers", pa.array(["10", "9"]), True),
    ("text of floats", pa.array(["10.5", "9"]), True),
    ("text of dates", pa.array(["2020-01-02", "2020-01-01"]), True),
    ("text of zoned times", pa.array(["2020-01-02T00:00:00Z", "2020-01-01T00:00:00Z"]), True),
    ("text of words", pa.array(["today", "yesterday"]), False),
    ("null", pa.array([2, None]), False),
    ("nan", pa.array([2.0, float("nan")]), False),
    ("all null", pa.nulls(2), False),
    ("bool", pa.array([True, False]), False),
    ("list", pa.array([[2], [1]]), False),
    ("struct", pa.array([{"t": 2}, {"t": 1}]), False),
    ("bytes", pa.array([b"2", b"1"]), False),
    ("duration", pa.array([2, 1], pa.duration("s")), False),
]


@pytest.mark.parametrize(("column", "usable"), [pytest.param(c, u, id=name) for name, c, u in TIMES])
def test_times_order_a_log_or_are_named(tmp_path, column, usable):
    path = write_files(tmp_path, {"log.parquet": table(timestamp=column)})
    if not usable:
        with pytest.raises(InteractionsError, match=r"log.parquet: .*order"):
            read_interactions(path)
        return
    log = read_interactions(path)
    assert [log.item_ids[code - 1].as_py() for code in log.items] == ["a", "b"]


# name, a file of CSV, JSON lines or parquet, or files by name; interactions, or a part of the error
LOGS = [
    ("reviews over several lines, 1.8 MB", REVIEWS, 4000),
    ("suffix in capitals", {"LOG.CSV": HEAD + b"u,a,1\n"}, 1),
    ("suffix in capitals, parquet", {"LOG.PARQUET": table()}, 2),
    ("of Spark", {"d/_SUCCESS": b"", "d/p0.snappy.parquet": table(), "d/p1.parquet": table()}, 4),
    ("of Spark, CSV", {"d/_SUCCESS": b"", "d/p0.csv": HEAD + b"u,a,1\n", "d/p1.csv": HEAD + b"v,a,2\n"}, 2),
    (
        "times of two units",
        {f"d/{unit}.parquet": table(timestamp=pa.array([2, 1], pa.timestamp(unit))) for unit in ("ms", "us")},
        4,
    ),
    ("ids as integers and text", {"d/0.parquet": table(), "d/1.parquet": table(item_id=[1, 2])}, 4),
    ("dictionary ids", table(item_id=pa.array(["a", "b"]).dictionary_encode()), 2),
    ("floats that are whole", table(item_id=[100.0, 101.0]), 2),
    ("binary ids", table(item_id=pa.array([b"a", b"b"])), 2),
    ("byte order mark", b"\xef\xbb\xbf" + HEAD + b"u,a,1\n", 1),
    ("JSON, integers of 30 digits", LINE.replace(b'"a"', b"123456789012345678901234567890"), 1),
    ("JSON, column after 1.2 MB", LINE * 30000 + LINE.replace(b"1}", b'1.5, "x": 1}'), 30001),
    (
        "two headers of one name",
        b"user_id,item_id,item_id,timestamp\nu,a,b,1\n",
        "several are named 'item_id'",
    ),
    ("two times", b"user_id,item_id,timestamp,position\nu,a,1,1\n", "found timestamp and position"),
    ("no times", b"user_id,item_id,day\nu,a,1\n", "found none among user_id, item_id, day"),
    ("open quote", HEAD + b'u,"a,1\nu,b,2\n', "row 1: lines 2 to 3: a quote is not balanced"),
    ("a column too many", HEAD + b"u,a,1\nu,a,1,9\n", "row 2: line 3: Expected 3 columns, got 4"),
    ("Latin-1 in an id", HEAD + b"u,\xf6,1\n", "row 1: column item_id: is not UTF-8"),
    ("a line that is not JSON", b"{\n", "no column|found none"),
    ("JSON, a line cut", LINE + b'{"user', "row 2: line 2: not JSON"),
    ("JSON, an id of a list", LINE.replace(b'"a"', b"[2]"), "neither text nor a number"),
    ("no rows", HEAD, "holds no interactions"),
    ("no bytes", b"", "found none|no interactions"),
    ("an empty folder", {"d/_SUCCESS": b""}, "is a folder without files"),
    ("two formats", {"d/0.csv": HEAD, "d/1.parquet": table()}, "files of one format"),
    ("a part that is cut", {"d/0.parquet": table(), "d/1.parquet": b"PAR1"}, "1.parquet cannot be read"),
    ("ids that are lists", table(item_id=[["a"], ["b"]]), "column 'item_id' is list"),
    ("ids that are bool", table(item_id=[True, False]), "column 'item_id' is bool"),
    ("ids beyond 2^53", table(item_id=[2.0**60, 1.0]), "ids are lost"),
    ("broken ids", table(item_id=[1.5, 1.0]), "1.5 is no whole number"),
    ("null ids", table(item_id=["a", None]), "1 of 2 item ids are null or empty, the first in row 2"),
    ("blank ids", HEAD + b"u, ,1\n", "1 of 1 item ids are null or empty"),
    (
        "text of Latin-1",
        table(item_id=binary_as_text([b"\xf6", b"b"])),
        "row 1: column item_id: is not UTF-8",
    ),
    (
        "times of two kinds",
        {"d/0.parquet": table(), "d/1.parquet": table(timestamp=[[1], [2]])},
        "files disagree",
    ),
    ("a zip", {"log.zip": b"PK"}, "ends in '.zip'; expected .parquet, "),
    ("no file", {"none.parquet": None}, "Log .*none.parquet does not exist"),
    ("no parquet", {"log.parquet": b"not parquet"}, "log.parquet cannot be read: "),
]


@pytest.mark.parametrize(("files", "result"), [pytest.param(*case, id=name) for name, *case in LOGS])
def test_a_log_is_read_or_refused_with_one_message(tmp_path, files, result):
    if isinstance(files, pa.Table):
        files = {"log.parquet": files}
    elif isinstance(files, bytes):
        files = {"log.jsonl" if files.startswith(b"{") else "log.csv": files}
    path = write_files(tmp_path, files)
    if isinstance(result, str):
        with pytest.raises(InteractionsError, match=result):
            read_interactions(path)
    else:
        assert len(read_interactions(path).items) == result


@pytest.mark.parametrize("what", ["log", "catalogue"])
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nowhere/none.csv", "memory://nowhere/none.csv does not exist"),
        ("nosuch://host/a.csv", "There is no file system for the {} nosuch://host/a.csv"),
        ("ftp://shop:hush@host/a.csv", "The URL of the {} holds a password"),
    ],
)
def test_a_url_that_is_not_usable_is_refused(url, message, what):
    with pytest.raises((InteractionsError, CatalogError), match=message.format(what)) as caught:
        read_interactions(url) if what == "log" else Catalog(catalog(url))
    assert "hush" not in str(caught.value)


# An id in a typed column, and how it is written everywhere; None: it is refused everywhere.
IDS = [
    ("100.0", pa.string(), "100.0"),
    (100.0, pa.float64(), "100"),
    (np.float32(100), pa.float32(), "100"),
    (100, pa.int64(), "100"),
    (-7, pa.int8(), "-7"),
    (2**53 - 1.0, pa.float64(), str(2**53 - 1)),
    (2.0**53, pa.float64(), None),
    (-(2.0**60), pa.float64(), None),
    (1.5, pa.float64(), None),
    (float("inf"), pa.float64(), None),
    (True, pa.bool_(), None),
    (dt.date(2020, 1, 1), pa.date32(), None),
    (" a  b ", pa.string(), " a  b "),
    ("007", pa.string(), "007"),
]


@pytest.mark.parametrize(("value", "kind", "text"), IDS, ids=lambda value: repr(value))
def test_catalogue_log_vectors_and_client_write_an_id_alike(tmp_path, value, kind, text):
    column = pa.array([value], kind)
    vectors = pa.array([[1.0, 2.0]], pa.list_(pa.float32()))
    content = pa.table({"item_id": column, "user_id": ["u"], "position": [1], "v": vectors})
    path = write_files(tmp_path, {"all.parquet": content})
    found = []
    for read in (
        lambda: [item.item_id for item in Catalog(catalog(path, max_bad_rows=0)).items()],
        lambda: read_interactions(path).item_ids.to_pylist(),
        lambda: index_interactions(["u"], column).item_ids.to_pylist(),
        lambda: [text] if read_vectors(path, pa.array([text or "x"]))["v"].any() else [],
        lambda: [id_text(value)],
    ):
        try:
            found.append(read())
        except (InteractionsError, FeatureMismatchError, ValueError):
            found.append(None)
    assert found == [None if text is None else [text]] * 5


@settings(max_examples=200)
@given(number=st.integers(-(2**70), 2**70))
def test_an_integer_is_its_digits_and_a_float_is_it_or_an_error(number):
    assert id_text(number) == str(number)
    try:
        assert int(id_text(float(number))) == number
    except FeatureMismatchError:
        assert abs(number) >= 2**53 - 1


def test_a_uuid_is_written_as_it_is_shown():
    value = uuid.UUID(int=7)
    column = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([value.bytes], pa.binary(16)))
    assert index_interactions(["u"], column).item_ids.to_pylist() == [id_text(value)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item_id": [[1]], "v": [[1.0]]}, "column 'item_id' is list"),
        ({"item_id": [2.0**60], "v": [[1.0]]}, "ids are lost"),
        ({"item_id": [1.5], "v": [[1.0]]}, "row 1: column item_id: 1.5"),
        ({"item_id": [b"\xff"], "v": [[1.0]]}, "is not UTF-8"),
        ({"item_id": ["a"], "v": [["x"]]}, "column of lists of numbers"),
        ({"item_id": ["a"], "v": [[[1.0]]]}, "column of lists of numbers"),
        ({"item_id": ["a"], "v": [1.0]}, "column of lists of numbers"),
        ({"item_id": ["a"], "v": [[float("inf")]]}, "finite"),
        ({"item_id": ["a"], "v": pa.array([[None]], pa.list_(pa.float32()))}, "finite|null"),
        ({"item_id": ["a", "b"], "v": [[1.0], [1.0, 2.0]]}, "lengths 1 to 2"),
        ({"item_id": ["a", "a"], "v": [[1.0], [1.0]]}, "several vectors"),
        ({"v": [[1.0]]}, "expected a column item_id"),
    ],
)
def test_a_file_of_vectors_is_refused_with_one_message(tmp_path, columns, message):
    path = write_files(tmp_path, {"v.parquet": pa.table(columns)})
    with pytest.raises(FeatureMismatchError, match=message):
        read_vectors(path, pa.array(["a"]))
