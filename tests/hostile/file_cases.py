"""Hostile files and folders: CSV and JSON as people and programs write them, parquet that is damaged."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq

from tests.hostile.table_cases import (
    ID_COLUMNS,
    IMAGE_COLUMNS,
    MISSING,
    PNG,
    TEXT_COLUMNS,
    UNUSABLE,
    Case,
    Reason,
    Rest,
)

BIG = "123456789012345678901234567890"

# name, a JSON value, its text; None: the row has a problem
JSON_TEXTS = [
    ("integer of 30 digits", BIG, BIG),
    ("integer of 5000 digits", "9" * 5000, "9" * 5000),
    ("minus", "-5", "-5"),
    ("decimal as written", "9.50", "9.50"),
    ("exponent", "1e3", "1e3"),
    ("beyond floats", "1e999", "1e999"),
    ("true", "true", "true"),
    ("false", "false", "false"),
    ("null", "null", ""),
    ("NaN", "NaN", ""),
    ("Infinity", "-Infinity", ""),
    ("a date", '"2020-01-01"', "2020-01-01"),
    ("a timestamp", '"2020-01-01T00:00:00Z"', "2020-01-01T00:00:00Z"),
    ("white space", '" a\\n\\tb "', "a b"),
    ("NUL", '"a\\u0000b"', "a\x00b"),
    ("list", '["a", null, "b"]', "a, b"),
    ("empty list", "[]", ""),
    ("object", '{"wood_type": "oak", "x": null}', "wood type oak"),
    ("list of objects", '[{"k": "wood"}, {"k": 1}]', "k wood, k 1"),
    ("deep", '{"a": {"b": {"c": [1.0]}}}', "a b c 1.0"),
    ("emoji as a pair", '"\\ud83d\\ude00"', "\U0001f600"),
    ("half a pair", '"\\ud83d"', None),
    ("half a pair in a list", '["a", "\\ud83d"]', None),
    ("nested 600 deep", "[" * 600 + "]" * 600, None),
    ("markup", '"<b>a</b>"', "<b>a</b>"),
]

# name, a JSON value, the id or the reason why there is none
JSON_IDS = [
    ("integer of 30 digits", BIG, BIG),
    ("integer", "7", "7"),
    ("minus", "-7", "-7"),
    ("a date", '"2020-01-01"', "2020-01-01"),
    ("zeros", '"007"', "007"),
    ("whole number", "100.0", "100"),
    ("whole with exponent", "1e2", "100"),
    ("text with a point", '"100.0"', "100.0"),
    ("white space kept", '" a "', " a "),
    ("broken number", "1.5", UNUSABLE),
    ("huge exponent", "1e999999999", UNUSABLE),
    ("true", "true", UNUSABLE),
    ("list", '["a"]', UNUSABLE),
    ("object", '{"a": 1}', UNUSABLE),
    ("nested 600 deep", "[" * 600 + "]" * 600, UNUSABLE),
    ("half a pair", '"\\ud83d"', UNUSABLE),
    ("null", "null", MISSING),
    ("NaN", "NaN", MISSING),
    ("empty", '""', MISSING),
    ("blank", '"\\u2003 "', MISSING),
]

JSON_IMAGES = [
    ("path", '"a.png"', None),
    ("struct", '{"bytes": null, "path": "a.png"}', None),
    ("null", "null", "missing_image"),
    ("NaN", "NaN", "missing_image"),
    ("empty", '""', "missing_image"),
    ("number", "0", "image_not_found"),
    ("broken number", "1.5", "unusable_image"),
    ("true", "true", "unusable_image"),
    ("list", '["a.png"]', "unusable_image"),
    ("object", '{"href": "a.png"}', "unusable_image"),
    ("half a pair", '"\\ud83d"', "unusable_image"),
    ("a folder", '"."', "image_not_found"),
    ("a URL", '"http://127.0.0.1:1/a.png"', "host_not_allowed"),
]

# name, a line, the reason of its row
JSON_LINES = [
    ("cut off", b'{"item_id": "b", "title"', "damaged_row"),
    ("a list", b'["b", "x"]', "damaged_row"),
    ("a number", b"7", "damaged_row"),
    ("text after it", b'{"item_id": "b"} x', "damaged_row"),
    ("two in a line", b'{"item_id": "b"}{"item_id": "c"}', "damaged_row"),
    ("single quotes", b"{'item_id': 'b'}", "damaged_row"),
    ("nested 100,000 deep", b'{"item_id": ' + b"[" * 100_000, "damaged_row"),
    ("a comment", b"// b", "damaged_row"),
    ("control character", b'{"item_id": "b\x01"}', "damaged_row"),
    ("bytes in the title", b'{"item_id": "b", "title": "M\xf6bel"}', "unusable_text"),
    ("bytes in the id", b'{"item_id": "\xff"}', "unusable_id"),
    ("no id", b'{"title": "x"}', "missing_id"),
    ("empty object", b"{}", "missing_id"),
    ("no text", b'{"item_id": "b"}', "missing_text"),
]

# name, what stands below the head line, rows, problems if there are any
CSV_FILES = [
    ("line ends of Windows", b"a,x\r\nb,y\r\n", {"a": "x", "b": "y"}),
    ("line ends of old Macs", b"a,x\rb,y\r", {"a": "x", "b": "y"}),
    ("no line end at the end", b"a,x\nb,y", {"a": "x", "b": "y"}),
    ("empty lines", b"a,x\n\n\nb,y\n\n", {"a": "x", "b": "y"}),
    ("quotes", b'a,"x ""y"", z"\n', {"a": 'x "y", z'}),
    ("inches", b'a,5" pipe\nb,y\n', {"a": '5" pipe', "b": "y"}),
    ("several lines", b'a,"x\ny\n\nz"\nb,y\n', {"a": "x y z", "b": "y"}),
    (
        "quote opened, next closes",
        b'a,"x\nb,y\nc,"z"\nd,w\n',
        {"d": "w"},
        dict.fromkeys((1, 2, 3), "damaged_row"),
    ),
    ("quote never closed", b'z,y\na,"x\nb,y\nc,z\n', {"z": "y"}, dict.fromkeys((2, 3, 4), "damaged_row")),
    ("text after a quote", b'a,"x"y\nb,y\n', {"b": "y"}, {1: "damaged_row"}),
    ("too many columns", b"a,x,z\nb,y\n", {"b": "y"}, {1: "damaged_row"}),
    ("too few columns", b"a\nb,y\n", {"b": "y"}, {1: "damaged_row"}),
    ("an empty column more", b"a,x,\nb,y\n", {"b": "y"}, {1: "damaged_row"}),
    ("Latin-1 in a text", b"a,M\xf6bel\nb,y\n", {"a": "", "b": "y"}, {1: "unusable_text"}),
    ("Latin-1 in an id", b"\xf6,x\nb,y\n", {"b": "y"}, {1: "unusable_id"}),
    ("NUL", b"a,x\x00y\nb,y\n", {"a": "x\x00y", "b": "y"}),
    ("all NUL", b"\x00" * 20 + b"\nb,y\n", {"b": "y"}, {1: "damaged_row"}),
    ("end of file of DOS", b"a,x\nb,y\n\x1a", {"a": "x", "b": "y"}, {3: "damaged_row"}),
    ("line of separators of Unicode", "a,x\u2028y\u0085z\n".encode(), {"a": "x y z"}),
    ("a text of a megabyte", b"a," + b"x" * 1_000_000 + b"\nb,y\n", {"a": "x" * 1_000_000, "b": "y"}),
    ("words that mean null", b"NULL,NaN\nNA,null\n", {"NULL": "NaN", "NA": "null"}),
    ("empty cells", b"a,\n,y\n", {"a": ""}, {1: "missing_text", 2: "missing_id"}),
    ("quoted empty cells", b'a,""\n"",y\n', {"a": ""}, {1: "missing_text", 2: "missing_id"}),
    ("ids as written", b"007,x\n100.0,y\n1e5,z\n", {"007": "x", "100.0": "y", "1e5": "z"}),
    ("ids with space", b" a,x\na,y\na ,z\n", {" a": "x", "a": "y", "a ": "z"}),
    ("an id of two lines", b'"a\nb",x\n', {"a\nb": "x"}),
    ("dates and integers", b"2020-01-01," + BIG.encode() + b"\n", {"2020-01-01": BIG}),
    ("repeated ids", b"a,x\na,y\n", {"a": "x"}, {2: "duplicate_id"}),
    ("head line again", b"item_id,title\na,x\n", {"item_id": "title", "a": "x"}),
    ("formulas", b"=1+1,@x\n", {"=1+1": "@x"}),
    ("bidirectional marks", "a,\u202ex\n".encode(), {"a": "\u202ex"}),
]

GOOD = pa.table({"item_id": ["a", "b"], "title": ["x", "y"]})
BOTH = {"a": {"title": "x"}, "b": {"title": "y"}}


def parquet(table):
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


def of(*ids, **columns):
    return pa.table({"item_id": ids, **columns})


def one(**columns):
    return of("c", **columns)


def both(**fields):
    """The rows of `GOOD`, with further fields."""
    return {name: row | fields for name, row in BOTH.items()}


_WHOLE = parquet(GOOD)
LARGER = parquet(pa.table({"item_id": [f"i{n}" for n in range(500)], "title": ["x"] * 500}))
HEAD, CSV = b"item_id,title\n", b"item_id,title\na,x\nb,y\n"
LINES = b'{"item_id":"a","title":"x"}\n{"item_id":"b","title":"y"}\n'
NONE, WORD, D_X = pa.nulls(0), pa.array(["x"]).dictionary_encode(), of("d", t=["x"])


def C(**fields):
    """The row of `one`."""
    return {"c": fields}


# name, the files of a folder, rows; or part of the error
PARTS = [
    ("text missing in the first", (GOOD, one(title=["z"], brand=["oak"])), BOTH | C(title="z", brand="oak")),
    ("text null in the first", (of("a", t=pa.nulls(1)), one(t=["z"])), {"a": {}} | C(t="z")),
    ("integers, then floats", (of("a", n=[10]), one(n=[9.5])), {"a": {"n": "10"}} | C(n="9.5")),
    ("integers, then text", (of("a", n=[10]), one(n=["x"])), {"a": {"n": "10"}} | C(n="x")),
    ("ids of integers, then text", (of(1, t=["x"]), one(t=["z"])), {"1": {"t": "x"}} | C(t="z")),
    ("ids of floats, then integers", (of(1.0, t=["x"]), of(2, t=["z"])), {"1": {"t": "x"}, "2": {"t": "z"}}),
    ("dates, then text", (one(t=pa.array([0], pa.date32())), D_X), C(t="1970-01-01") | {"d": {"t": "x"}}),
    ("other order of columns", (GOOD, pa.table({"title": ["z"], "item_id": ["c"]})), BOTH | C(title="z")),
    ("dictionary, then text", (one(t=WORD), of("d", t=["y"])), C(t="x") | {"d": {"t": "y"}}),
    ("list in one, text in the other", (one(t=[["x"]]), D_X), "1.parquet: column 't' is string, and in "),
    ("struct in one, text in the other", (one(t=[{"x": 1}]), D_X), "column 't' is string, and in "),
    ("an empty part", (GOOD.slice(0, 0), GOOD), BOTH),
    ("a part without rows and types", (pa.table({"item_id": NONE, "title": NONE}), GOOD), BOTH),
    ("a part that is cut", (GOOD, _WHOLE[: len(_WHOLE) // 2]), "1.parquet cannot be read"),
    ("a part of no bytes", (GOOD, b""), "1.parquet cannot be read"),
    ("a part that is text", (GOOD, b"not parquet, but text"), "1.parquet cannot be read"),
    ("no part with the id", (pa.table({"title": ["x"]}),), "no column 'item_id'. Its columns are title"),
]

FOLDERS = [
    ("nothing in it", {"nothing": None}, "is a folder without files"),
    ("only hidden files", {".x.parquet": GOOD}, "is a folder without files"),
    ("only Spark's mark", {"_SUCCESS": b""}, "is a folder without files"),
    ("of Spark", {"_SUCCESS": b"", ".part-0.crc": b"x", "part-0.snappy.parquet": GOOD}, BOTH),
    ("of Spark, CSV", {"_SUCCESS": b"", "p0.csv": HEAD + b"a,x\n", "p1.csv": HEAD + b"b,y\n"}, BOTH),
    ("of Spark, JSON", {"_SUCCESS": b"", "p0.json": LINES, "p1.json": b""}, BOTH),
    ("CSV with other columns", {"0.csv": CSV, "1.csv": b"wood,item_id\noak,c\n"}, BOTH | C(wood="oak")),
    ("of Hive, without suffix", {"000000_0": _WHOLE}, BOTH),
    ("a readme in it", {"0.parquet": GOOD, "README.md": b"x"}, "expected files of one format"),
    ("two formats", {"0.parquet": GOOD, "1.csv": b"item_id\nc\n"}, "expected files of one format"),
    ("a Delta table", {"0.parquet": GOOD, "_delta_log/0.json": b"{}"}, "is a Delta table"),
    ("keys as text", {"shelf=007/0.parquet": GOOD}, both(shelf="007")),
    ("keys with spaces", {"shelf=a%20b/0.parquet": GOOD}, both(shelf="a b")),
    ("null keys", {"shelf=__HIVE_DEFAULT_PARTITION__/0.parquet": GOOD}, BOTH),
    ("keys of dates", {"day=2020-01-01/0.parquet": GOOD}, both(day="2020-01-01")),
    ("keys that the files have too", {"title=z/0.parquet": GOOD}, both(title="z")),
    (
        "files at two depths",
        {"0.parquet": GOOD, "s=1/0.parquet": one(title=["z"])},
        BOTH | C(title="z", s="1"),
    ),
    ("a suffix in capitals", {"0.PARQUET": GOOD}, BOTH),
]

LATE = [json.dumps({"item_id": f"i{n}", "t": "x" * 1000}) for n in range(1200)]
# name, the last line of a JSON file of 1.2 MB, its fields
JSON_ENDS = [
    ("column after 1.2 MB", '{"item_id": "z", "brand": "oak"}', {"brand": "oak"}),
    ("a float after integers", '{"item_id": "z", "n": 9.5}', {"n": "9.5"}),
    ("a list after text", '{"item_id": "z", "t": ["a", "b"]}', {"t": "a, b"}),
    ("an object after text", '{"item_id": "z", "t": {"a": "b"}}', {"t": "a b"}),
]
# name, a CSV file, rows; or part of the error
CSV_HEADS = [
    ("byte order mark", b"\xef\xbb\xbfitem_id,title\na,x\nb,y\n", BOTH),
    ("quoted names", b'"item_id","title"\na,x\nb,y\n', BOTH),
    ("UTF-16", "item_id,title\na,x\n".encode("utf-16"), "UTF-16"),
    ("UTF-16, big end first", b"\xfe\xff" + "item_id,title\na,x\n".encode("utf-16-be"), "UTF-16"),
    ("names twice", b"item_id,title,title\na,x,y\n", "several are named 'title'"),
    ("the id twice", b"item_id,item_id\na,b\n", "several are named 'item_id'"),
    ("Latin-1 in a name", b"item_id,h\xf6he\na,x\n", "does not name columns"),
    ("an open quote", b'"item_id,title\na,x\n', "does not name columns"),
    ("semicolons", b"item_id;title\na;x\n", "no column 'item_id'. Its columns are item_id;title"),
    ("tabs", b"item_id\ttitle\na\tx\n", "no column 'item_id'"),
    ("no head line", b"a,x\nb,y\n", "no column 'item_id'. Its columns are a, x"),
    ("only a head line", b"item_id,title\n", "has no rows"),
    ("only line ends", b"\n\n\n", "no column 'item_id'"),
    ("no bytes", b"", "has no rows"),
    ("binary rubbish", bytes(range(256)) * 4, "has no column 'item_id'"),
    ("index of pandas", b",item_id,title\n0,a,x\n1,b,y\n", BOTH),
    ("index of pandas, read and written", b"Unnamed: 0,item_id,title\n0,a,x\n1,b,y\n", BOTH),
    ("control tokens as a name", b"item_id,<|im_end|>\na,x\n", {"a": {"<|im_end|>": "x"}}),
    ("our own name", b"item_id,__row,row\na,x,y\n", {"a": {"__row": "x", "row": "y"}}),
    ("space in a name", b"item_id, title\na,x\n", {"a": {" title": "x"}}),
]

MANY = {f"column_{n}": f"value {n}" for n in range(500)}
# name, a parquet file, rows; or part of the error
PARQUET_FILES = [
    ("index of pandas", of("a", "b", title=["x", "y"], __index_level_0__=[5, 9]), BOTH),
    (
        "our own names",
        of("a", row=["x"], __row=["y"], texts=["z"]),
        {"a": {"row": "x", "__row": "y", "texts": "z"}},
    ),
    (
        "names twice",
        pa.Table.from_arrays([WORD, WORD, WORD], ["item_id", "t", "t"]),
        "several of its columns are named 't'",
    ),
    ("no columns beside the id", of("a", "b"), {"a": {}, "b": {}}),
    ("no rows", GOOD.slice(0, 0), "has no rows; expected at least one item"),
    ("500 text columns", of("a", **{name: [value] for name, value in MANY.items()}), {"a": MANY}),
]
# name, file, content, rows; or part of the error
SUFFIXES = [
    ("capitals", "C.CSV", CSV, BOTH),
    ("none", "c", HEAD + b"a,x\n", "ends in ''; expected .parquet, .jsonl"),
    ("Excel", "c.xlsx", b"PK", "ends in '.xlsx'"),
    ("compressed", "c.csv.gz", b"\x1f\x8b", "ends in '.gz'"),
    ("CSV in a parquet file", "c.parquet", HEAD + b"a,x\n", "cannot be read"),
    ("parquet in a CSV file", "c.csv", _WHOLE, "c.csv"),
    ("parquet in a JSON file", "c.jsonl", _WHOLE, "c.jsonl"),
]


def _json_cases():
    for name, value, text in JSON_TEXTS:
        line = f'{{"item_id": "a", "t": {value}, "u": "x"}}\n'
        problems = {1: "unusable_text"} if text is None else {}
        fields = {"t": text, "u": "x"} if text else {"u": "x"}
        yield Case(f"JSON text: {name}", {"c.jsonl": line.encode()}, {"a": fields}, problems)
    for name, value, item_id in JSON_IDS:
        line = f'{{"item_id": {value}, "t": "x"}}\n'
        rows, problems = _identified([item_id], [{"t": "x"}])
        yield Case(f"JSON id: {name}", {"c.jsonl": line.encode()}, rows, problems)
    for name, value, reason in JSON_IMAGES:
        files = {"c.jsonl": f'{{"item_id": "a", "t": "x", "image": {value}}}\n'.encode(), "a.png": PNG}
        yield Case(f"JSON image: {name}", files, {"a": {"t": "x"}}, _numbered([reason]))
    for name, content, reason in JSON_LINES:
        content = b'{"item_id": "a", "title": "x"}\n' + content + b'\n{"item_id": "z", "title": "y"}\n'
        middle = {"b": {}} if reason in ("unusable_text", "missing_text") else {}
        rows = {"a": {"title": "x"}} | middle | {"z": {"title": "y"}}
        yield Case(f"JSON line: {name}", {"c.ndjson": content}, rows, {2: reason})
    for name, last, fields in JSON_ENDS:
        rows = {f"i{n}": {"t": "x" * 1000} for n in range(1200)} | {"z": fields}
        yield Case(f"JSON: {name}", {"c.jsonl": "\n".join([*LATE, last]).encode()}, rows)


def _csv_cases():
    for name, body, texts, *problems in CSV_FILES:
        rows = {i: {"title": t} if t else {} for i, t in texts.items()}
        yield Case(f"CSV: {name}", {"c.csv": HEAD + body}, rows, *problems)
    for name, content, result in CSV_HEADS:
        yield Case(f"CSV head: {name}", {"c.csv": content}, result)


def _numbered(reasons):
    """Row -> its reason, if it has one."""
    return {row: str(reason) for row, reason in enumerate(reasons, start=1) if reason}


def _identified(ids, fields):
    """Rows that have an id, and why the others have none."""
    rows = {i: row for i, row in zip(ids, fields, strict=True) if not isinstance(i, Reason)}
    return rows, _numbered(isinstance(i, Reason) and i for i in ids)


def _parquet_cases():
    for name, column, texts in TEXT_COLUMNS:
        files = {"c.parquet": of("a", "b", t_x=column, u=["x", "y"])}
        if isinstance(texts, str):
            yield Case(f"text column: {name}", files, texts)
            continue
        rows = {i: ({"t_x": t} if t else {}) | {"u": u} for i, t, u in zip("ab", texts, "xy", strict=True)}
        reasons = ["unusable_text" if isinstance(text, Rest) else "" for text in texts]
        yield Case(f"text column: {name}", files, rows, _numbered(reasons))
        # The same rows as two row groups of a folder's second file.
        parts = {"d/0.parquet": one(u=["z"]), "d/1.parquet": files["c.parquet"]}
        yield Case(f"text column in parts: {name}", parts, C(u="z") | rows, _numbered(["", *reasons]))
    for name, column, ids in ID_COLUMNS:
        files = {"c.parquet": pa.table({"item_id": column, "t": ["x", "y", "z"]})}
        result = (ids,) if isinstance(ids, str) else _identified(ids, [{"t": t} for t in "xyz"])
        yield Case(f"id column: {name}", files, *result)
    for name, column, reasons in IMAGE_COLUMNS:
        files = {"c.parquet": of("a", "b", "c", t=["x", "y", "z"], image=column), "a.png": PNG}
        rows = {i: {"t": t} for i, t in zip("abc", "xyz", strict=True)}
        result = (reasons,) if isinstance(reasons, str) else (rows, _numbered(reasons))
        yield Case(f"image column: {name}", files, *result)


def _file_cases():
    for name, parts, result in PARTS:
        inside = {f"d/{n}.parquet": part for n, part in enumerate(parts)}
        yield Case(f"parts: {name}", inside, result)
    for name, files, result in FOLDERS:
        inside = {f"d/{path}": content for path, content in files.items()}
        yield Case(f"folder: {name}", inside, result)
    for name, content, result in PARQUET_FILES:
        yield Case(f"parquet: {name}", {"c.parquet": content}, result)
    for share in (1, 4, 12, len(_WHOLE) // 3, len(_WHOLE) // 2, len(_WHOLE) - 9, len(_WHOLE) - 1):
        yield Case(
            f"parquet: cut after {share} bytes", {"c.parquet": _WHOLE[:share]}, "c.parquet cannot be read"
        )
    for name, file, content, result in SUFFIXES:
        yield Case(f"suffix: {name}", {file: content}, result)
    absent = "none.parquet does not exist; expected a parquet, JSONL or CSV file"
    yield Case("path: absent", {}, absent, path="none.parquet")
    yield Case("path: NUL", {}, "none", path="none\x00.csv")
    yield Case("path: too long", {}, "cannot be read", path="x" * 300 + ".csv")
    yield Case("path: a file as a folder", {"c.csv": b"item_id\na\n"}, "d.csv", path="c.csv/d.csv")


CASES = [*_parquet_cases(), *_json_cases(), *_csv_cases(), *_file_cases()]
