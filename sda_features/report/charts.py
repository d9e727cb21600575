"""Small SVG charts: lines over steps, and a grid of shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
WIDTH, HEIGHT, LEFT, BOTTOM = 420, 200, 52, 24  # pixels: of a line chart, and of its margins
CELL_WIDTH, CELL_HEIGHT, LABEL = 46, 16, 70  # pixels: of a cell of a grid, and of its labels

SPARSE = 20  # points below which each is marked: a line of one point is none

Point = tuple[float, float]


def line_chart(title: str, lines: Mapping[str, Sequence[Point]]) -> str:
    """Lines in one pair of axes, an SVG document.

    Args:
        title: above the chart.
        lines: name -> points (x, y), finite, x ascending; a line without points is left out.
    """
    lines = {name: points for name, points in lines.items() if points}
    xs = [x for points in lines.values() for x, _ in points] or [0.0]
    ys = [y for points in lines.values() for _, y in points] or [0.0]
    (left, right), (low, high) = (min(xs), max(xs)), (min(ys), max(ys))
    if high == low:
        low, high = low - 0.5, high + 0.5

    def at(x: float, y: float) -> tuple[str, str]:
        across = (x - left) / ((right - left) or 1) * (WIDTH - LEFT - 10)
        up = (y - low) / (high - low) * (HEIGHT - BOTTOM - 46)
        return f"{LEFT + across:.1f}", f"{HEIGHT - BOTTOM - up:.1f}"

    parts = [
        svg_head(WIDTH, HEIGHT),
        f'<text x="{LEFT}" y="14" font-weight="600">{escape(title)}</text>',
        f'<text x="{LEFT - 6}" y="{HEIGHT - BOTTOM}" text-anchor="end">{low:.3g}</text>',
        f'<text x="{LEFT - 6}" y="50" text-anchor="end">{high:.3g}</text>',
        f'<text x="{WIDTH - 10}" y="{HEIGHT - 6}" text-anchor="end">step {right:,.0f}</text>',
        f'<path d="M{LEFT} 42V{HEIGHT - BOTTOM}H{WIDTH - 10}" fill="none" stroke="#888"/>',
    ]
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [at(x, y) for x, y in points]
        path = " ".join(f"{x},{y}" for x, y in places)
        marked = places if len(places) < SPARSE else []
        parts += [
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>',
            *(f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>' for x, y in marked),
            f'<circle cx="{LEFT + 4 + 110 * number}" cy="28" r="4" fill="{colour}"/>',
            f'<text x="{LEFT + 12 + 110 * number}" y="32">{escape(name)}</text>',
        ]
    return "".join([*parts, "</svg>"])


def share_grid(
    title: str, rows: Sequence[str], columns: Sequence[str], shares: Sequence[Sequence[float]]
) -> str:
    """A grid of numbers in 0..1, darker for larger, an SVG document.

    Args:
        title: above the grid.
        rows: names of the rows.
        columns: names of the columns.
        shares: a number for each row and column.
    """
    width, height = LABEL + CELL_WIDTH * len(columns) + 10, 44 + CELL_HEIGHT * len(rows)
    parts = [
        svg_head(max(width, 240), height),
        f'<text x="0" y="14" font-weight="600">{escape(title)}</text>',
    ]
    for number, name in enumerate(columns):
        x = LABEL + CELL_WIDTH * number + CELL_WIDTH / 2
        parts.append(f'<text x="{x:.0f}" y="34" text-anchor="middle">{escape(name)}</text>')
    for number, (name, values) in enumerate(zip(rows, shares, strict=True)):
        y = 40 + CELL_HEIGHT * number
        parts.append(f'<text x="{LABEL - 6}" y="{y + 12}" text-anchor="end">{escape(name)}</text>')
        parts += [
            f'<rect x="{LABEL + CELL_WIDTH * place}" y="{y}" width="{CELL_WIDTH - 2}" height="{CELL_HEIGHT - 2}" '
            f'fill="#4477aa" fill-opacity="{min(1.0, max(0.0, value)):.3f}" stroke="#8886">'
            f"<title>{escape(name)}, {escape(columns[place])}: {value:.3f}</title></rect>"
            for place, value in enumerate(values)
        ]
    return "".join([*parts, "</svg>"])


def svg_head(width: float, height: float) -> str:
    """Where an SVG document of this size, in pixels, begins."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">'
    )
