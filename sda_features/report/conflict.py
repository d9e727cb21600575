"""Gradient conflict of several adapters side by side: a Markdown table and a bar chart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from sda_features.artifacts import atomic_file, check_folder, write_json
from sda_features.report.charts import COLOURS, svg_head
from sda_features.results import Result, text_table

HEADERS = {
    "module": "module",
    "columns": "columns of B",
    "layers": "layers",
    "name": "adapter",
    "cosine": "cosine",
    "standard_error": "±",
    "negative_share": "negative",
    "norm_ratio": "text/image norm",
    "measurements": "n",
}
# Pixels: width of labels, of a cosine of 1, height of a bar, of the head.
LABEL, HALF, BAR, TOP = 300, 220, 18, 40
CONFLICT_FILES = ("conflict.json", "conflict.md", "conflict.svg")

Row = Mapping[str, Any]


def conflict_table(rows: Sequence[Row]) -> str:
    """One row for each module, part of B and choice of layers, the adapters below each other.

    Args:
        rows: fields of `lvlm.diagnostics.Conflict`.

    Returns:
        Markdown.
    """
    places: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        places.setdefault((row["module"], row["columns"], row["layers"]), []).append(row)
    ordered = [row for of_place in places.values() for row in of_place]
    cells = [[row[key] for key in HEADERS] for row in ordered]
    formats = ("", "", "", "", ".3f", ".3f", ".2f", ".3f", "")
    return text_table(cells, list(HEADERS.values()), floatfmt=formats)


def conflict_chart(rows: Sequence[Row]) -> str:
    """The cosines of the last layer as horizontal bars around zero, an SVG document.

    Args:
        rows: fields of `lvlm.diagnostics.Conflict`.
    """
    shown = [row for row in rows if row["layers"] == "last" and not math.isnan(row["cosine"])]
    shown.sort(key=lambda row: (row["module"], row["columns"]))
    names = list(dict.fromkeys(row["name"] for row in rows))
    zero, height = LABEL + HALF, TOP + BAR * len(shown) + 10
    parts = [
        svg_head(zero + HALF + 10, height),
        f'<text x="{zero}" y="16" text-anchor="middle">cosine of text and image gradients, last layer</text>',
        *(
            f'<text x="{zero + value * HALF}" y="32" text-anchor="middle">{value}</text>'
            for value in (-1, 0, 1)
        ),
    ]
    for number, row in enumerate(shown):
        y, length = TOP + BAR * number, abs(row["cosine"]) * HALF
        colour = COLOURS[names.index(row["name"]) % len(COLOURS)]
        label = escape(f"{row['module']}, {row['columns']}: {row['name']}"[-48:])
        parts += [
            f'<text x="{LABEL - 6}" y="{y + 12}" text-anchor="end">{label}</text>',
            f'<rect x="{zero - (length if row["cosine"] < 0 else 0):.1f}" y="{y}" width="{length:.1f}" '
            f'height="{BAR - 4}" fill="{colour}"><title>{row["cosine"]:.4f}</title></rect>',
        ]
    parts += [f'<line x1="{zero}" x2="{zero}" y1="{TOP - 4}" y2="{height - 6}" stroke="black"/>', "</svg>"]
    return "\n".join(parts) + "\n"


@dataclass(frozen=True)
class Conflicts(Result):
    """What `diagnose` measured; rows as for `conflict_table`."""

    rows: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """See `Result`; None for NaN."""
        rows = [{name: None if value != value else value for name, value in row.items()} for row in self.rows]
        return {"conflict": rows}

    def __str__(self) -> str:
        return conflict_table(self.rows)


def write_conflict(folder: Path, rows: Sequence[Row]) -> None:
    """Write conflict.json, conflict.md (table) and conflict.svg (chart) to `folder`."""
    check_folder(folder, CONFLICT_FILES, "an earlier diagnosis")
    write_json(folder / CONFLICT_FILES[0], {"conflict": rows})
    texts = conflict_table(rows) + "\n", conflict_chart(rows)
    for name, text in zip(CONFLICT_FILES[1:], texts, strict=True):
        with atomic_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
