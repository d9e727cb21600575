from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from sda_features.catalog.rows import Catalog
from sda_features.config import CatalogSettings, PromptSettings
from sda_features.demo.catalogue import Catalogue, _draw_factors, make_catalogue, text_fields
from sda_features.demo.factors import (
    COLOURS,
    FACTORS,
    KINDS,
    MATERIALS,
    PATTERNS,
    SHAPES,
    TIERS,
    TYPICAL_COLOURS,
    USES,
    columns_shown_in,
)
from sda_features.errors import SettingsError


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return make_catalogue(60, seed=5)


def test_one_seed_decides_everything(catalogue: Catalogue) -> None:
    again, other = make_catalogue(60, seed=5), make_catalogue(60, seed=6)
    assert again.table.equals(catalogue.table)
    assert again.bad_rows == catalogue.bad_rows
    assert not np.array_equal(other.factors, catalogue.factors)


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_the_catalogue_report_lists_exactly_the_bad_rows(tmp_path: Path, share: float) -> None:
    shop, path = make_catalogue(60, seed=5, one_modality=share), tmp_path / "items.parquet"
    shop.write(path)
    opened = Catalog(CatalogSettings(path=path, max_bad_rows=1.0))
    items = list(opened.items())
    reported = sorted((p["row"], p["item_id"], p["reason"]) for p in opened.report.problems)
    assert reported == list(shop.bad_rows)
    assert len({reason for _, _, reason in reported}) == 5
    assert [item.item_id for item in items] == list(shop.item_ids)
    assert opened.text_columns == ("title", "brand", "category", "description")
    alone = int(share * len(items) / 2)
    assert sum(item.image is None for item in items) == alone + 2  # one is broken, one is gone
    assert sum(not item.fields for item in items) == alone + 1
    assert np.array_equal(shop.factors, make_catalogue(60, seed=5).factors)


def test_without_spoiling_every_row_is_usable(tmp_path: Path) -> None:
    clean = make_catalogue(30, spoil=False)
    clean.write(tmp_path / "items.parquet")
    opened = Catalog(CatalogSettings(path=tmp_path / "items.parquet"))
    assert all(item.image is not None and item.fields for item in opened.items())
    assert (opened.report.problems, clean.bad_rows, clean.table.num_rows) == ([], (), 30)


def test_texts_name_their_factors_and_no_others() -> None:
    clean = make_catalogue(200, spoil=False)
    hidden = re.compile("|".join([*(p.rstrip("s") for p in PATTERNS), *TIERS]), re.IGNORECASE)
    for fields, levels in zip(text_fields(clean), clean.factors, strict=True):
        named = {factor.name: factor.levels[level] for factor, level in zip(FACTORS, levels, strict=True)}
        assert fields["category"] == KINDS[named["kind"]][0]
        assert any(fields["title"].endswith(f" {noun}") for noun in KINDS[named["kind"]][1])
        assert any(f" {word} " in fields["title"] for word in SHAPES[named["shape"]])
        assert any(f" {word} " in fields["title"] for word in MATERIALS[named["material"]])
        assert f" {named['colour']} " in fields["title"]
        assert any(use in fields["description"] for use in USES[named["use"]])
        assert fields["brand"] in TIERS[named["tier"]]
        said = " ".join(fields.values()).replace("Plainly", "")  # a brand, not a pattern
        assert not hidden.search(said), said
        assert max(map(len, fields.values())) <= PromptSettings().max_field_chars


def test_typical_looks_hold_for_most_products_and_not_all() -> None:
    factors = _draw_factors(600, np.random.default_rng(0))
    names = [factor.name for factor in FACTORS]
    colours, materials = factors[:, names.index("colour")], factors[:, names.index("material")]
    typical = [
        list(COLOURS)[colour] in TYPICAL_COLOURS[list(MATERIALS)[material]]
        for colour, material in zip(colours, materials, strict=True)
    ]
    assert 0.6 < np.mean(typical) < 0.8  # .6 on purpose, and a quarter of the rest by chance


def test_both_modalities_show_some_factors_and_each_shows_more() -> None:
    text, image = set(columns_shown_in("text")), set(columns_shown_in("image"))
    assert {FACTORS[column].name for column in text & image} == {"kind", "shape", "colour"}
    assert text - image
    assert image - text
    assert text | image == set(columns_shown_in("text", "image")) == set(range(len(FACTORS)))


def test_too_few_items_are_refused() -> None:
    with pytest.raises(SettingsError, match="at least 10 items, got 9"):
        make_catalogue(9)
