"""A generated shop catalogue: pictures, texts, the factors behind them, and a few bad rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sda_features.artifacts import atomic_file
from sda_features.demo.drawings import draw_product
from sda_features.demo.factors import (
    COLOURS,
    FACTORS,
    KINDS,
    MATERIALS,
    PATTERNS,
    SHAPES,
    TIERS,
    TYPICAL_COLOURS,
    TYPICAL_PATTERN,
    TYPICAL_SHARE,
    USES,
)
from sda_features.errors import SettingsError

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("item_id", "title", "brand", "category", "description")]
    + [("image", pa.binary())]
)
NO_TEXT = dict.fromkeys(("title", "brand", "category", "description"))
PICTURE_SIDES = (84, 98, 112)  # pixels
DESCRIPTIONS = (
    "Made for {use}.",
    "A fine choice for {use}, easy to clean.",
    "Designed with {use} in mind.",
    "At its best during {use}; ships in a recycled box.",
)


@dataclass(frozen=True)
class Catalogue:
    """A generated catalogue and the truth behind it.

    Attributes:
        table: one row an item, then the surplus bad rows; columns as in `SCHEMA`.
        item_ids: ids of the items, in the order of `factors`.
        factors: int64 [items, factors]; column f holds the position in `FACTORS[f].levels`.
        bad_rows: what a catalogue report must list, in row order: row from 1, id (None where it is
            missing) and reason, as `sda_features.catalog.rows.CatalogReport` calls it.
    """

    table: pa.Table
    item_ids: tuple[str, ...]
    factors: NDArray[np.int64]
    bad_rows: tuple[tuple[int, str | None, str], ...]

    def write(self, path: Path) -> None:
        """Write the table as parquet, atomically."""
        with atomic_file(path) as temporary:
            pq.write_table(self.table, temporary, compression="zstd")


def make_catalogue(
    items: int = 600, *, seed: int = 0, spoil: bool = True, one_modality: float = 0.0
) -> Catalogue:
    """Generate products: a level of each factor, then a picture and texts that show it.

    Levels are uniform and independent, but for the typical colours of a material and the typical
    pattern of a use (`factors.TYPICAL_SHARE`).

    Args:
        items: number of products, at least 10.
        seed: decides everything.
        spoil: break one picture, drop one, empty the texts of one item, and append a row with
            a repeated id and one without an id.
        one_modality: share of listings that have either a text or a picture, as many of one as of the other.

    Raises:
        SettingsError: fewer than 10 items.
    """
    if items < 10:
        raise SettingsError(f"A demo catalogue needs at least 10 items, got {items}; ask for more.")
    rng = np.random.default_rng([seed, 1])
    factors = _draw_factors(items, rng)
    rows = [
        {"item_id": f"item-{number:05d}", **_product(levels, rng)} for number, levels in enumerate(factors)
    ]
    item_ids = tuple(row["item_id"] for row in rows)
    faults = _leave_out(rows, one_modality, np.random.default_rng([seed, 4]))
    if spoil:
        faults |= _damage_rows(rows, [row for row in range(items) if row not in faults], rng)
    bad_rows = tuple((row + 1, rows[row]["item_id"], faults[row]) for row in sorted(faults))
    return Catalogue(pa.Table.from_pylist(rows, schema=SCHEMA), item_ids, factors, bad_rows)


def text_fields(catalogue: Catalogue) -> list[dict[str, str]]:
    """Text column -> value of every row, in prompt order, empty values left out."""
    rows = catalogue.table.drop_columns(["item_id", "image"]).to_pylist()
    return [{name: value for name, value in row.items() if value} for row in rows]


def _draw_factors(items: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Levels of every factor: int64 [items, factors]."""
    factors = np.stack([rng.integers(len(factor.levels), size=items) for factor in FACTORS], axis=1)
    _, _, _, _, materials, _, uses = factors.T
    colour, pattern = 2, 3  # columns
    colours = [[list(COLOURS).index(name) for name in TYPICAL_COLOURS[material]] for material in MATERIALS]
    patterns = [PATTERNS.index(TYPICAL_PATTERN[use]) for use in USES]
    is_typical = rng.random((2, items)) < TYPICAL_SHARE
    typical_colour = np.array(colours)[materials, rng.integers(2, size=items)]
    factors[:, colour] = np.where(is_typical[0], typical_colour, factors[:, colour])
    factors[:, pattern] = np.where(is_typical[1], np.array(patterns)[uses], factors[:, pattern])
    return factors


def _product(levels: NDArray[np.int64], rng: np.random.Generator) -> dict[str, Any]:
    kind, shape, colour, pattern, material, tier, use = (
        factor.levels[level] for factor, level in zip(FACTORS, levels, strict=True)
    )

    def word(choices: tuple[str, ...]) -> str:
        return choices[rng.integers(len(choices))]

    category, nouns = KINDS[kind]
    brand = word(TIERS[tier])
    return {
        "title": f"{brand} {word(SHAPES[shape])} {colour} {word(MATERIALS[material])} {word(nouns)}",
        "brand": brand,
        "category": category,
        "description": word(DESCRIPTIONS).format(use=word(USES[use])),
        "image": draw_product(kind, shape, colour, pattern, side=int(rng.choice(PICTURE_SIDES)), rng=rng),
    }


def _leave_out(rows: list[dict[str, Any]], share: float, rng: np.random.Generator) -> dict[int, str]:
    """Take the picture from half of a share of rows, the texts from the other half; return row -> reason."""
    chosen = rng.permutation(len(rows))[: round(share * len(rows))]
    faults = {int(row): ("missing_image", "missing_text")[place % 2] for place, row in enumerate(chosen)}
    for row, reason in faults.items():
        rows[row].update({"image": None} if reason == "missing_image" else NO_TEXT)
    return faults


def _damage_rows(rows: list[dict[str, Any]], whole: list[int], rng: np.random.Generator) -> dict[int, str]:
    """Spoil three of the rows `whole` in place, append two more, and return row -> reason."""
    broken, pictureless, wordless, repeated = (int(index) for index in rng.choice(whole, 4, replace=False))
    rows[broken]["image"] = rows[broken]["image"][:200]
    rows[pictureless]["image"] = None
    rows[wordless].update(NO_TEXT)
    rows.append(dict(rows[repeated]))
    rows.append({**rows[repeated], "item_id": None})
    return {
        broken: "broken_image",
        pictureless: "missing_image",
        wordless: "missing_text",
        len(rows) - 2: "duplicate_id",
        len(rows) - 1: "missing_id",
    }
