"""Hostile interaction logs and files of vectors; one rule of ids in all four places."""

import datetime as dt
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sda_features.catalog.rows import Catalog
from sda_features.config import CatalogSettings
from sda_features.errors import FeatureMismatchError, InteractionsError
from sda_features.logs.interactions import index_interactions, read_interactions
from sda_features.serving.layout import id_text
from sda_features.workflows.features import read_vectors

pytestmark = pytest.mark.hostile

HEAD = b"user_id,item_id,timestamp\n"
REVIEWS = b"user_id,item_id,timestamp,review\n" + b"".join(
    b'u%d,i%d,%d,"first line, %s\n\n""second"" line"\n' % (n % 50, n % 70, n, b"x" * 400) for n in range(4000)
)


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
    path = tmp_path / "log.parquet"
    pq.write_table(table(timestamp=column), path)
    if not usable:
        with pytest.raises(InteractionsError, match=r"log.parquet: .*order"):
            read_interactions(path)
        return
    log = read_interactions(path)
    assert [log.item_ids[code - 1].as_py() for code in log.items] == ["a", "b"]


# name, files, interactions or a part of the error; what is opened is the only file, or the folder d
LOGS = [
    ("reviews over several lines, 1.8 MB", {"log.csv": REVIEWS}, 4000),
    ("suffix in capitals", {"LOG.CSV": HEAD + b"u,a,1\n"}, 1),
    ("suffix in capitals, parquet", {"LOG.PARQUET": table()}, 2),
    ("of Spark", {"d/_SUCCESS": b"", "d/p0.snappy.parquet": table(), "d/p1.parquet": table()}, 4),
    ("of Spark, CSV", {"d/_SUCCESS": b"", "d/p0.csv": HEAD + b"u,a,1\n", "d/p1.csv": HEAD + b"v,a,2\n"}, 2),
    (
        "times of two units",
        {
            "d/0.parquet": table(timestamp=pa.array([2, 1], pa.timestamp("ms"))),
            "d/1.parquet": table(timestamp=pa.array([2, 1], pa.timestamp("us"))),
        },
        4,
    ),
    ("ids as integers and text", {"d/0.parquet": table(), "d/1.parquet": table(item_id=[1, 2])}, 4),
    ("dictionary ids", {"log.parquet": table(item_id=pa.array(["a", "b"]).dictionary_encode())}, 2),
    ("floats that are whole", {"log.parquet": table(item_id=[100.0, 101.0])}, 2),
    ("binary ids", {"log.parquet": table(item_id=pa.array([b"a", b"b"]))}, 2),
    ("byte order mark", {"log.csv": b"\xef\xbb\xbf" + HEAD + b"u,a,1\n"}, 1),
    (
        "JSON, integers of 30 digits",
        {"log.jsonl": b'{"user_id": 1, "item_id": 123456789012345678901234567890, "timestamp": 1}\n'},
        1,
    ),
    (
        "JSON, column after 1.2 MB",
        {
            "log.jsonl": b'{"user_id": "u", "item_id": "a", "timestamp": 1}\n' * 30000
            + b'{"user_id": "u", "item_id": "a", "timestamp": 1.5, "x": 1}\n'
        },
        30001,
    ),
    (
        "two headers of one name",
        {"log.csv": b"user_id,item_id,item_id,timestamp\nu,a,b,1\n"},
        "several are named 'item_id'",
    ),
    (
        "two times",
        {"log.csv": b"user_id,item_id,timestamp,position\nu,a,1,1\n"},
        "found timestamp and position",
    ),
    ("no times", {"log.csv": b"user_id,item_id\nu,a\n"}, "found none"),
    ("open quote", {"log.csv": HEAD + b'u,"a,1\nu,b,2\n'}, "row 1: lines 2 to 3: a quote is not balanced"),
    (
        "a column too many",
        {"log.csv": HEAD + b"u,a,1\nu,a,1,9\n"},
        "row 2: line 3: Expected 3 columns, got 4",
    ),
    ("Latin-1 in an id", {"log.csv": HEAD + b"u,\xf6,1\n"}, "row 1: column item_id: is not UTF-8"),
    ("a line that is not JSON", {"log.jsonl": b"{\n"}, "no column|found none"),
    (
        "JSON, a line cut",
        {"log.jsonl": b'{"user_id": 1, "item_id": 2, "timestamp": 1}\n{"user'},
        "row 2: line 2: not JSON",
    ),
    (
        "JSON, an id of a list",
        {"log.jsonl": b'{"user_id": 1, "item_id": [2], "timestamp": 1}\n'},
        "neither text nor a number",
    ),
    ("no rows", {"log.csv": HEAD}, "holds no interactions"),
    ("no bytes", {"log.csv": b""}, "found none|no interactions"),
    ("an empty folder", {"d/_SUCCESS": b""}, "is a folder without files"),
    ("two formats", {"d/0.csv": HEAD, "d/1.parquet": table()}, "files of one format"),
    ("a part that is cut", {"d/0.parquet": table(), "d/1.parquet": b"PAR1"}, "1.parquet cannot be read"),
    ("ids that are lists", {"log.parquet": table(item_id=[["a"], ["b"]])}, "column 'item_id' is list"),
    ("ids that are bool", {"log.parquet": table(item_id=[True, False])}, "column 'item_id' is bool"),
    ("ids beyond 2^53", {"log.parquet": table(item_id=[2.0**60, 1.0])}, "ids are lost"),
    ("broken ids", {"log.parquet": table(item_id=[1.5, 1.0])}, "1.5 is no whole number"),
    (
        "null ids",
        {"log.parquet": table(item_id=["a", None])},
        "1 of 2 item ids are null or empty, the first in row 2",
    ),
    ("blank ids", {"log.csv": HEAD + b"u, ,1\n"}, "1 of 1 item ids are null or empty"),
    (
        "text and bytes of Latin-1",
        {"log.parquet": table(item_id=pa.array([b"\xf6", b"b"]).view(pa.string()))},
        "row 1: column item_id: is not UTF-8",
    ),
    (
        "times of two kinds",
        {"d/0.parquet": table(), "d/1.parquet": table(timestamp=[["x"], ["y"]])},
        "its files disagree",
    ),
    ("a zip", {"log.zip": b"PK"}, "ends in '.zip'"),
]


@pytest.mark.parametrize(("files", "result"), [pytest.param(*case[1:], id=case[0]) for case in LOGS])
def test_a_log_is_read_or_refused_with_one_message(tmp_path, files, result):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            pq.write_table(content, tmp_path / name)
    path = tmp_path / next(iter(files)).split("/")[0]
    if isinstance(result, str):
        with pytest.raises(InteractionsError, match=result):
            read_interactions(path)
    else:
        assert len(read_interactions(path).items) == result


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
    path = tmp_path / "all.parquet"
    vectors = pa.array([[1.0, 2.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"item_id": column, "user_id": ["u"], "position": [1], "v": vectors}), path)
    found = []
    for read in (
        lambda: [item.item_id for item in Catalog(CatalogSettings.parse(path=path, max_bad_rows=0)).items()],
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
        ({"item_id": pa.array([[1]]), "v": pa.array([[1.0]])}, "column 'item_id' is list"),
        ({"item_id": pa.array([2.0**60]), "v": pa.array([[1.0]])}, "ids are lost"),
        ({"item_id": pa.array([1.5]), "v": pa.array([[1.0]])}, "row 1: column item_id: 1.5"),
        ({"item_id": pa.array([b"\xff"]), "v": pa.array([[1.0]])}, "is not UTF-8"),
        ({"item_id": pa.array(["a"]), "v": pa.array([["x"]])}, "column of lists of numbers"),
        ({"item_id": pa.array(["a"]), "v": pa.array([[[1.0]]])}, "column of lists of numbers"),
        ({"item_id": pa.array(["a"]), "v": pa.array([1.0])}, "column of lists of numbers"),
        ({"item_id": pa.array(["a"]), "v": pa.array([[float("inf")]])}, "finite"),
        ({"item_id": pa.array(["a"]), "v": pa.array([[None]], pa.list_(pa.float32()))}, "finite|null"),
        ({"item_id": pa.array(["a", "b"]), "v": pa.array([[1.0], [1.0, 2.0]])}, "lengths 1 to 2"),
        ({"item_id": pa.array(["a", "a"]), "v": pa.array([[1.0], [1.0]])}, "several vectors"),
        ({"v": pa.array([[1.0]])}, "expected a column item_id"),
    ],
)
def test_a_file_of_vectors_is_refused_with_one_message(tmp_path, columns, message):
    path = tmp_path / "v.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(FeatureMismatchError, match=message):
        read_vectors(path, pa.array(["a"]))
