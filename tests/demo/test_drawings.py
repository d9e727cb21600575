from __future__ import annotations

import io
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sda_features.demo.drawings import OUTLINES, draw_product
from sda_features.demo.factors import COLOURS, KINDS, PATTERNS, SHAPES


def pixels(
    kind: str = "mug", shape: str = "regular", colour: str = "red", pattern: str = "plain", *, seed: int = 0
) -> NDArray[np.float64]:
    encoded = draw_product(kind, shape, colour, pattern, side=96, rng=np.random.default_rng(seed))
    image = Image.open(io.BytesIO(encoded))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (96, 96))
    return np.asarray(image, float)


def product_box(picture: NDArray[np.float64]) -> tuple[int, int]:
    """Height and width of what is saturated, thus not background."""
    coloured = np.ptp(picture, axis=2) > 70
    rows, columns = np.flatnonzero(coloured.sum(1) > 2), np.flatnonzero(coloured.sum(0) > 2)
    return int(np.ptp(rows)), int(np.ptp(columns))


def test_every_kind_is_drawn_and_nothing_else() -> None:
    assert {kind for kind, *_ in OUTLINES} == set(KINDS)


@pytest.mark.parametrize("numbers", [row[-1] for row in OUTLINES])
def test_primitives_stay_in_the_unit_square(numbers: tuple[float, ...]) -> None:
    coordinates = numbers if len(numbers) > 5 else numbers[:4]
    assert all(0 <= value <= 1 for value in coordinates)


def test_same_seed_same_bytes() -> None:
    first, second, other = (
        draw_product("lamp", "slim", "blue", "dots", side=84, rng=np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other


@pytest.mark.parametrize(("colour", "kind"), list(product(COLOURS, ("mug", "table"))))
def test_the_most_common_strong_colour_is_the_one_asked_for(colour: str, kind: str) -> None:
    picture = pixels(kind, colour=colour).reshape(-1, 3)
    distance = np.linalg.norm(picture[:, None] - np.array(list(COLOURS.values()), float), axis=2)
    close = distance.argmin(1)[distance.min(1) < 35]
    assert list(COLOURS)[np.bincount(close, minlength=len(COLOURS)).argmax()] == colour


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_squeeze_the_outline(kind: str) -> None:
    aspects = {}
    for shape in SHAPES:
        height, width = np.mean([product_box(pixels(kind, shape, seed=seed)) for seed in range(4)], axis=0)
        aspects[shape] = width / height
    assert aspects["slim"] < 0.85 * aspects["regular"] < 0.85**2 * aspects["wide"]


def test_patterns_differ_in_how_much_light_ink_they_use() -> None:
    light = {}
    for pattern in PATTERNS:
        bodies = [pixels("mug", "regular", "blue", pattern, seed=seed)[36:60, 30:46] for seed in range(4)]
        light[pattern] = (np.stack(bodies)[..., 0] > 130).mean()
    assert light["plain"] < 0.05 < 0.2 < light["dots"] < 0.45
    assert 0.35 < light["stripes"] < 0.65
    assert 0.35 < light["checks"] < 0.65
