"""The report: one HTML file that needs no network.

The page (page/page.html, page.css, page.js) shows what it is given: tables, a map of items, and a
gallery of neighbours. Pictures are thumbnails in the file.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from numpy.typing import NDArray

from sda_features.report.inspection import change_rows, space_rows
from sda_features.report.thumbnails import PER_ROW, Sheets

GLOSSARY = {
    "spread": "Length of the mean of unit vectors. Near 1, all vectors point one way: the space has collapsed.",
    "uniformity": "Log of the mean of exp(-2 d²) over pairs of items; lower is more evenly spread, 0 is collapsed.",
    "effective rank": "Directions that are really in use, of as many as the dimension.",
    "modality gap": "Distance between the mean text vector and the mean picture vector, 0 to 2.",
    "alignment": "Mean squared distance of an item's own text and picture vector after centring; lower is closer.",
    "R@k": "Share of items whose picture is among the k nearest to their text, by centred cosine.",
    "same vector": "Share of items whose vector equals that of another item (of ten others). Many items with one "
    "picture have a placeholder.",
    "neighbours with the same ...": "Share of the ten nearest items that agree in a catalogue column; in brackets, "
    "of random items.",
}


@dataclass(frozen=True)
class Section:
    """A part of the report below the gallery: training, gates, recommenders.

    Attributes:
        id: anchor.
        title: heading.
        note: a sentence above.
        charts: SVG documents.
        tables: headers and rows of cells.
    """

    id: str
    title: str
    note: str = ""
    charts: Sequence[str] = ()
    tables: Sequence[tuple[Sequence[str], Sequence[Sequence[str]]]] = ()


@dataclass(frozen=True, eq=False)
class GalleryData:
    """The n items that the page shows.

    Attributes:
        ids: n ids.
        names: n names.
        columns: catalogue column -> n values; the map can be coloured by each.
        pictured: bool [n], whether the item has a thumbnail.
        sheets: their thumbnails, item by item.
        mapped: int [m], items that are on the map.
        places: float32 [m, 2] in 0..1.
        neighbours: name of a space -> view (text, image, both) -> int32 [n, k].
    """

    ids: Sequence[str]
    names: Sequence[str]
    columns: Mapping[str, Sequence[str | None]]
    pictured: NDArray[np.bool_]
    sheets: Sheets
    mapped: NDArray[np.int64]
    places: NDArray[np.float32]
    neighbours: Mapping[str, Mapping[str, NDArray[np.int32]]]


def render_report(
    title: str,
    subtitle: str,
    spaces: Sequence[Mapping[str, Any]],
    change: Mapping[str, Any] | None,
    shown: GalleryData,
    sections: Sequence[Section] = (),
    *,
    shared_pictures: Sequence[tuple[int, int]] = (),
    map_note: str = "",
    footer: str = "",
) -> str:
    """The whole page.

    Args:
        title: heading.
        subtitle: a sentence below it.
        spaces: numbers of each version, see `workflows.inspect_vectors`.
        change: numbers of the change from the second to the first.
        shown: the items on the page.
        sections: further parts.
        shared_pictures: (item, number of items) of pictures that many items share.
        map_note: a sentence below the map.
        footer: last line.
    """
    pages = PackageLoader("sda_features.report", "page")
    environment = Environment(loader=pages, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html").render(
        title=title,
        subtitle=subtitle,
        data=_data(shown),
        numbers={"headers": ["", *(space["name"] for space in spaces)], "rows": space_rows(spaces)},
        change={"name": change["name"], "rows": change_rows(change)} if change else None,
        glossary=GLOSSARY,
        shared_pictures=shared_pictures,
        sections=sections,
        map_note=map_note,
        footer=footer,
    )


def _data(shown: GalleryData) -> str:
    """What page.js reads: JSON that ends no script element early."""
    content = {
        "ids": list(shown.ids),
        "names": list(shown.names),
        "columns": [_coded(name, column) for name, column in shown.columns.items()],
        "pictured": shown.pictured.astype(int).tolist(),
        "side": shown.sheets.side,
        "perRow": PER_ROW,
        "sheets": shown.sheets.urls,
        "mapped": shown.mapped.tolist(),
        "places": _packed(shown.places, "<f4"),
        "k": next((lists["text"].shape[1] for lists in shown.neighbours.values()), 0),
        "spaces": [
            {"name": name, "neighbours": {view: _packed(found, "<i4") for view, found in lists.items()}}
            for name, lists in shown.neighbours.items()
        ],
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _coded(name: str, values: Sequence[str | None]) -> dict[str, Any]:
    """A column as its distinct values and the position of each item's among them, -1 for none."""
    known = {value: code for code, value in enumerate(dict.fromkeys(filter(None, values)))}
    codes = [known[value] if value else -1 for value in values]
    return {"name": name, "values": list(known), "codes": codes}


def _packed(matrix: NDArray[Any], dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(matrix, dtype).tobytes()).decode()
