"""Hostile tables as data: what stands in a file, and what is right."""

import datetime as dt
import decimal
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415478da63f8cfc0000003010100f7034143"
    "0000000049454e44ae426082"
)
DAY = dt.datetime(2020, 1, 2, 3, 4, 5)
FAR = 253_402_300_800  # seconds: the year 10000
UUIDS = (
    "00000000-0000-0000-0000-000000000000",
    "01010101-0101-0101-0101-010101010101",
    "02020202-0202-0202-0202-020202020202",
)


class Case(NamedTuple):
    """One hostile catalogue.

    Attributes:
        name: kind and what it is.
        files: see `write_files`.
        result: id -> fields of the usable rows, in order; or a part of the one error.
        problems: row -> reason in the report.
        path: what is opened; none: the first file, or its folder.
    """

    name: str
    files: Mapping[str, Any]
    result: Mapping[str, Mapping[str, str]] | str
    problems: Mapping[int, str] = {}
    path: str = ""


def write_files(folder, files, path=""):
    """Name -> bytes, a table for parquet, or None for its folder alone; gives `path`, the first file or its folder."""
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            target.write_bytes(content)
        elif content is not None:
            pq.write_table(content, target, row_group_size=1)
    return folder / (path or next(iter(files)).split("/")[0])


class Reason(str):
    """Why a row has no id, in the place of it."""


class Rest(str):
    """What is left of a text of which a part cannot be used."""


MISSING, UNUSABLE, REPEATED = map(Reason, ("missing_id", "unusable_id", "duplicate_id"))
LOST = Rest()


def binary_as_text(values, kind=None):
    """Text that its writer did not check."""
    return pa.array(values, pa.large_binary() if kind else pa.binary()).view(kind or pa.string())


def _uuids(count):
    return pa.array([bytes([n]) * 16 for n in range(count)], pa.binary(16)).cast(pa.uuid())


STRUCTS = pa.array([{"a_b": 1, "c": None}, {"a_b": None, "c": "x  y"}])
D = decimal.Decimal
TEXT_MAP, NUMBER_MAP = pa.map_(pa.string(), pa.string()), pa.map_(pa.string(), pa.int8())
BYTES, PATH = {"bytes": PNG}, {"path": "a.png"}
BAD, OK = b"M\xf6bel", b"oak"

# name, column, the text of both rows; or part of the error
TEXT_COLUMNS = [
    ("string", pa.array(["oak", None]), ("oak", "")),
    ("large string", pa.array(["oak", "elm"], pa.large_string()), ("oak", "elm")),
    ("string view", pa.array(["oak", "e" * 40], pa.string_view()), ("oak", "e" * 40)),
    ("white space", pa.array([" a\t b\n", "\u00a0c\u2003d "]), ("a b", "c d")),
    ("control characters", pa.array(["a\x00b", "a\x1bb"]), ("a\x00b", "a\x1bb")),
    ("right to left marks", pa.array(["a\u202eb", "\ufeffa"]), ("a\u202eb", "\ufeffa")),
    ("empty and blank", pa.array(["", "  "]), ("", "")),
    ("text nan", pa.array(["nan", "None"]), ("nan", "None")),
    ("a formula", pa.array(["=1+1", "@SUM(A1)"]), ("=1+1", "@SUM(A1)")),
    ("very long", pa.array(["x" * 300_000, "y"]), ("x" * 300_000, "y")),
    ("binary that is UTF-8", pa.array([OK, None], pa.binary()), ("oak", "")),
    ("large binary", pa.array([OK, OK], pa.large_binary()), ("oak", "oak")),
    ("binary view", pa.array([OK, OK], pa.binary_view()), ("oak", "oak")),
    ("fixed binary", pa.array([OK, OK], pa.binary(3)), ("oak", "oak")),
    ("binary that is Latin-1", pa.array([BAD, OK], pa.binary()), (LOST, "oak")),
    ("string that is Latin-1", binary_as_text([OK, BAD]), ("oak", LOST)),
    ("large string that is Latin-1", binary_as_text([BAD, OK], pa.large_string()), (LOST, "oak")),
    ("surrogates as UTF-8", binary_as_text([b"\xed\xa0\x80", OK]), (LOST, "oak")),
    ("overlong UTF-8", binary_as_text([b"\xc0\xaf", OK]), (LOST, "oak")),
    ("UTF-8 cut off", binary_as_text(["ö".encode()[:1], OK]), (LOST, "oak")),
    ("null", pa.nulls(2), ("", "")),
    ("bool", pa.array([True, False]), ("true", "false")),
    ("int8", pa.array([-128, None], pa.int8()), ("-128", "")),
    ("uint64", pa.array([2**64 - 1, 0], pa.uint64()), (str(2**64 - 1), "0")),
    ("double", pa.array([9.5, 10.0]), ("9.5", "10")),
    ("double nan", pa.array([float("nan"), 1995.0]), ("", "1995")),
    ("double infinite", pa.array([float("inf"), -float("inf")]), ("", "")),
    ("double of many digits", pa.array([0.1 + 0.2, 1e300]), ("0.30000000000000004", "1e+300")),
    ("double minus zero", pa.array([-0.0, 123456789012.0]), ("-0", "123456789012")),
    ("float", pa.array([9.1, 0.1], pa.float32()), ("9.1", "0.1")),
    ("half float", pa.array([9.1, 2], pa.float16()), ("9.1", "2")),
    ("decimal", pa.array([D("9.50"), None]), ("9.50", "")),
    ("decimal of 76 digits", pa.array([D(10**70), D(1)], pa.decimal256(76, 0)), (str(10**70), "1")),
    ("small decimal", pa.array([D("0.01"), D("1.00")], pa.decimal128(5, 2)), ("0.01", "1.00")),
    ("date", pa.array([dt.date(2020, 1, 2), None]), ("2020-01-02", "")),
    ("date in milliseconds", pa.array([0, 86_400_000], pa.date64()), ("1970-01-01", "1970-01-02")),
    ("date beyond 9999", pa.array([10**7, 0], pa.date32()), (LOST, "1970-01-01")),
    ("date before Christ", pa.array([-(10**6), 0], pa.date32()), (LOST, "1970-01-01")),
    ("timestamp in s", pa.array([DAY, None], pa.timestamp("s")), ("2020-01-02 03:04:05", "")),
    ("timestamp in ns", pa.array([1, None], pa.timestamp("ns")), ("1970-01-01 00:00:00.000000001", "")),
    ("timestamp beyond 9999", pa.array([FAR, 0], pa.timestamp("s")), (LOST, "1970-01-01 00:00:00")),
    ("timestamp of 2^62", pa.array([2**62, 0], pa.timestamp("ms")), (LOST, "1970-01-01 00:00:00")),
    ("timestamp of -2^62", pa.array([-(2**62), 0], pa.timestamp("us")), (LOST, "1970-01-01 00:00:00")),
    ("UTC", pa.array([0, None], pa.timestamp("us", "UTC")), ("1970-01-01 00:00:00+00:00", "")),
    ("an offset", pa.array([0, None], pa.timestamp("s", "+05:30")), ("1970-01-01 05:30:00+05:30", "")),
    ("far in a zone", pa.array([FAR, None], pa.timestamp("s", "Europe/Berlin")), (LOST, "")),
    ("zone unknown", pa.array([0, None], pa.timestamp("s", "Mars/Base")), "no time zone 'Mars/Base'"),
    ("time", pa.array([dt.time(1, 2, 3), None]), ("01:02:03", "")),
    ("time in ns", pa.array([1, None], pa.time64("ns")), ("00:00:00.000000001", "")),
    ("duration", pa.array([90, None], pa.duration("s")), ("0:01:30", "")),
    ("duration too long", pa.array([2**62, None], pa.duration("s")), (LOST, "")),
    ("dictionary", pa.array(["oak", None]).dictionary_encode(), ("oak", "")),
    ("dictionary of numbers", pa.array([5, 7]).dictionary_encode(), ("5", "7")),
    (
        "dictionary, Latin-1",
        pa.DictionaryArray.from_arrays([0, 1], binary_as_text([BAD, OK])),
        "cannot be read: Invalid UTF8 payload",
    ),
    ("uuid", _uuids(2), UUIDS[:2]),
    ("list", pa.array([["a", None, " b "], []]), ("a, b", "")),
    ("list of numbers", pa.array([[1, 2], None]), ("1, 2", "")),
    ("large list", pa.array([["a"], ["b", "c"]], pa.large_list(pa.string())), ("a", "b, c")),
    ("fixed list", pa.array([[1, 2], [3, 4]], pa.list_(pa.int8(), 2)), ("1, 2", "3, 4")),
    ("list of lists", pa.array([[["a"], ["b", "c"]], None]), ("a, b, c", "")),
    ("list, Latin-1", pa.array([[OK, BAD], [OK]], pa.list_(pa.binary())), (Rest("oak"), "oak")),
    ("list of dates", pa.array([[dt.date(2020, 1, 2)], []]), ("2020-01-02", "")),
    ("struct", STRUCTS, ("a b 1", "c x y")),
    ("struct, all null", pa.array([{"a": None}, None], pa.struct({"a": pa.int8()})), ("", "")),
    ("struct in struct", pa.array([{"a": {"b": 1}}, {"a": None}]), ("a b 1", "")),
    ("list of structs", pa.array([[{"k": "wood", "v": "oak"}], []]), ("k wood, v oak", "")),
    ("struct, Latin-1", pa.array([{"a": BAD}, {"a": OK}]), (LOST, "a oak")),
    ("map", pa.array([[("wood", "oak"), ("x", None)], None], TEXT_MAP), ("wood oak", "")),
    ("map of lists", pa.array([[("a", [1])], []], pa.map_(pa.string(), pa.list_(pa.int8()))), ("a 1", "")),
]

# Columns that parquet cannot hold, or not in this form: through the rules alone.
MEMORY_COLUMNS = [
    ("list view", pa.array([[1], [2, 3]], pa.list_view(pa.int8())), ("1", "2, 3")),
    ("large list view", pa.array([[1], None], pa.large_list_view(pa.int8())), ("1", "")),
    ("run ends", pc.run_end_encode(pa.array(["a", "a"])), ("a", "a")),
    ("slice of lists", pa.array([["z"], ["a"], ["b", "c"]]).slice(1), ("a", "b, c")),
    ("slice of maps", pa.array([[("z", 1)], [("a", 2)], []], NUMBER_MAP).slice(1), ("a 2", "")),
    ("slice of structs", pa.array([{"a": 1}, {"a": 2}, None]).slice(1), ("a 2", "")),
    ("union", pa.UnionArray.from_sparse(pa.array([0, 0], pa.int8()), [pa.array([1, 2])]), "no rule"),
    ("months and days", pa.array([(1, 2, 3), None], pa.month_day_nano_interval()), "no rule"),
]

# name, column, the id of each of three rows or the reason; or part of the error
ID_COLUMNS = [
    ("text", pa.array(["a", "b", "c"]), ("a", "b", "c")),
    ("zeros in front", pa.array(["007", "07", "7"]), ("007", "07", "7")),
    ("white space kept", pa.array([" a", "a", "a "]), (" a", "a", "a ")),
    ("white space inside", pa.array(["a b", "a  b", "a\tb"]), ("a b", "a  b", "a\tb")),
    ("line ends", pa.array(["a\nb", "a\r\nb", "a\rb"]), ("a\nb", "a\r\nb", "a\rb")),
    ("case and accents", pa.array(["É", "E\u0301", "é"]), ("É", "E\u0301", "é")),
    ("NUL", pa.array(["a\x00", "a", "\x00"]), ("a\x00", "a", "\x00")),
    ("blank", pa.array(["a", " ", ""]), ("a", MISSING, MISSING)),
    ("null", pa.array(["a", None, "c"]), ("a", MISSING, "c")),
    ("all null", pa.nulls(3), (MISSING, MISSING, MISSING)),
    ("repeated", pa.array(["a", "b", "a"]), ("a", "b", REPEATED)),
    ("word nan", pa.array(["nan", "None", "null"]), ("nan", "None", "null")),
    ("integers", pa.array([1, -2, 2**63 - 1]), ("1", "-2", str(2**63 - 1))),
    ("unsigned", pa.array([0, 1, 2**64 - 1], pa.uint64()), ("0", "1", str(2**64 - 1))),
    ("whole floats", pa.array([100.0, 101.0, None]), ("100", "101", MISSING)),
    ("floats of pandas", pa.array([100.0, float("nan"), 1.0]), ("100", MISSING, "1")),
    ("broken floats", pa.array([1.5, 2.0, float("inf")]), (UNUSABLE, "2", UNUSABLE)),
    ("largest float", pa.array([2.0**53 - 1, 1.0, 2.0]), (str(2**53 - 1), "1", "2")),
    ("floats of 2^53", pa.array([2.0**53, 1.0, 2.0]), "9007199254740992 and its neighbours"),
    ("floats below -2^53", pa.array([-(2.0**60), 1.0, 2.0]), "ids are lost"),
    ("float32 of 2^24", pa.array([2.0**24, 1.0, 2.0], pa.float32()), "16777216 and its neighbours"),
    ("float16", pa.array([2047, 1, 2], pa.float16()), ("2047", "1", "2")),
    ("decimals", pa.array([D("1.00"), D("2.50"), D("3.00")]), ("1", UNUSABLE, "3")),
    ("decimals of 38 digits", pa.array([D(10**37), D(1), None]), (str(10**37), "1", MISSING)),
    ("binary", pa.array([b"a", b"b", None], pa.binary()), ("a", "b", MISSING)),
    ("binary, Latin-1", pa.array([b"a", BAD, b"c"], pa.binary()), ("a", UNUSABLE, "c")),
    ("text, Latin-1", binary_as_text([b"a", BAD, b"c"]), ("a", UNUSABLE, "c")),
    ("fixed binary", pa.array([b"a1", b"b2", b"c3"], pa.binary(2)), ("a1", "b2", "c3")),
    ("dictionary", pa.array(["a", None, "c"]).dictionary_encode(), ("a", MISSING, "c")),
    ("dictionary of numbers", pa.array([1, 2, 1]).dictionary_encode(), ("1", "2", REPEATED)),
    ("views", pa.array(["a", "b" * 20, "c"], pa.string_view()), ("a", "b" * 20, "c")),
    ("large text", pa.array(["a", "b", "c"], pa.large_string()), ("a", "b", "c")),
    ("uuid", _uuids(3), UUIDS),
    ("bool", pa.array([True, False, None]), "column 'item_id' is bool"),
    ("date", pa.array([dt.date(2020, 1, 1)] * 3), "column 'item_id' is date32"),
    ("timestamp", pa.array([DAY] * 3), "column 'item_id' is timestamp"),
    ("list", pa.array([["a"], ["b"], []]), "column 'item_id' is list"),
    ("struct", pa.array([{"a": 1}] * 3), "column 'item_id' is struct"),
    ("map", pa.array([[("a", 1)]] * 3, NUMBER_MAP), "column 'item_id' is map"),
    ("time", pa.array([dt.time(1)] * 3), "column 'item_id' is time64"),
]

# name, column, the reason why each of three rows has no picture, if it has none; or part of the error
IMAGE_COLUMNS = [
    ("bytes", pa.array([PNG, None, b""], pa.binary()), ("", "missing_image", "missing_image")),
    ("large bytes", pa.array([PNG, PNG, b"x"], pa.large_binary()), ("", "", "broken_image")),
    ("byte views", pa.array([PNG, PNG, PNG], pa.binary_view()), ("", "", "")),
    ("fixed bytes", pa.array([PNG, PNG, PNG], pa.binary(len(PNG))), ("", "", "")),
    ("dictionary of bytes", pa.array([PNG, PNG, None]).dictionary_encode(), ("", "", "missing_image")),
    ("struct of bytes and path", pa.array([BYTES | {"path": "x"}, PATH, None]), ("", "", "missing_image")),
    ("struct of bytes", pa.array([BYTES, {"bytes": b"x"}, BYTES]), ("", "broken_image", "")),
    ("struct of path", pa.array([PATH, {"path": "b.png"}, PATH]), ("", "image_not_found", "")),
    ("struct, others beside", pa.array([{"path": "a.png", "height": 1}] * 3), ("", "", "")),
    ("paths", pa.array(["a.png", "", None]), ("", "missing_image", "missing_image")),
    (
        "paths outside",
        pa.array(["../a.png", "/etc/passwd", "a.png"]),
        ("path_outside_root", "path_outside_root", ""),
    ),
    ("paths with NUL", pa.array(["a.png\x00", "a.png", "a.png"]), ("image_not_found", "", "")),
    ("path views", pa.array(["a.png"] * 3, pa.string_view()), ("", "", "")),
    ("paths, Latin-1", binary_as_text([BAD, b"a.png", b"a.png"]), ("unusable_image", "", "")),
    ("null", pa.nulls(3), ("missing_image", "missing_image", "missing_image")),
    ("bool", pa.array([True, False, None]), "column 'image' is bool"),
    ("integers", pa.array([0, 1, 2]), "column 'image' is int64"),
    ("floats", pa.array([float("nan"), 0.0, None]), "column 'image' is double"),
    ("dates", pa.array([dt.date(2020, 1, 1)] * 3), "column 'image' is date32"),
    ("lists", pa.array([[PNG], [], None]), "column 'image' is list<"),
    ("lists of numbers", pa.array([[1, 2]] * 3, pa.list_(pa.uint8())), "column 'image' is list<"),
    ("other struct", pa.array([{"url": "x"}] * 3), "column 'image' is struct<url"),
    ("struct of numbers", pa.array([{"bytes": 1}] * 3), "column 'image' is struct<bytes: int64"),
    ("struct of lists", pa.array([{"bytes": [1]}] * 3), "column 'image' is struct<bytes: list"),
    ("map", pa.array([[("path", "a.png")]] * 3, TEXT_MAP), "column 'image' is map"),
    ("decimal", pa.array([D("1.0")] * 3), "column 'image' is decimal128"),
]
