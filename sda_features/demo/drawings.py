"""Product pictures drawn with Pillow: an outline for each kind, a colour, a pattern, a background.

A kind is a list of primitives in a unit square, x to the right and y down. Its body takes the colour
and the pattern, its trim a darker shade. The shape factor squeezes the square.
"""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from sda_features.demo.factors import COLOURS

OVERSAMPLING = 2
ASPECT = {"slim": (0.58, 1.0), "regular": (0.86, 0.86), "wide": (1.0, 0.58)}  # width, height
# Kind, part, primitive, numbers; of a kind, what is in front comes last. Numbers are corners, and then the radius of
# a box's corners, the width of a ring.
OUTLINES: tuple[tuple[str, str, str, tuple[float, ...]], ...] = (
    ("mug", "trim", "ring", (0.52, 0.28, 0.98, 0.76, 0.09)),
    ("mug", "trim", "ellipse", (0.10, 0.04, 0.70, 0.22)),
    ("mug", "body", "box", (0.10, 0.12, 0.70, 0.95, 0.08)),
    ("bottle", "body", "box", (0.25, 0.36, 0.75, 1.00, 0.10)),
    ("bottle", "body", "polygon", (0.27, 0.42, 0.42, 0.18, 0.58, 0.18, 0.73, 0.42)),
    ("bottle", "trim", "box", (0.40, 0.00, 0.60, 0.20, 0.03)),
    ("teapot", "trim", "polygon", (0.70, 0.72, 1.00, 0.30, 0.92, 0.26, 0.66, 0.52)),
    ("teapot", "trim", "ring", (0.00, 0.38, 0.36, 0.84, 0.07)),
    ("teapot", "trim", "ellipse", (0.30, 0.22, 0.66, 0.38)),
    ("teapot", "trim", "ellipse", (0.42, 0.12, 0.54, 0.26)),
    ("teapot", "body", "ellipse", (0.18, 0.28, 0.78, 0.98)),
    ("bowl", "body", "polygon", (0.00, 0.34, 1.00, 0.34, 0.90, 0.66, 0.70, 0.86, 0.30, 0.86, 0.10, 0.66)),
    ("bowl", "trim", "ellipse", (0.00, 0.24, 1.00, 0.44)),
    ("bowl", "trim", "box", (0.34, 0.84, 0.66, 0.94, 0.02)),
    ("chair", "trim", "box", (0.16, 0.62, 0.25, 1.00, 0.00)),
    ("chair", "trim", "box", (0.79, 0.62, 0.88, 1.00, 0.00)),
    ("chair", "body", "box", (0.14, 0.02, 0.42, 0.58, 0.05)),
    ("chair", "body", "box", (0.14, 0.50, 0.90, 0.66, 0.04)),
    ("table", "trim", "box", (0.08, 0.40, 0.18, 1.00, 0.00)),
    ("table", "trim", "box", (0.82, 0.40, 0.92, 1.00, 0.00)),
    ("table", "body", "box", (0.00, 0.22, 1.00, 0.42, 0.03)),
    ("shelf", "trim", "box", (0.08, 0.00, 0.92, 1.00, 0.02)),
    ("shelf", "body", "box", (0.16, 0.06, 0.84, 0.31, 0.00)),
    ("shelf", "body", "box", (0.16, 0.375, 0.84, 0.625, 0.00)),
    ("shelf", "body", "box", (0.16, 0.69, 0.84, 0.94, 0.00)),
    ("basket", "trim", "ring", (0.18, 0.04, 0.82, 0.92, 0.07)),
    ("basket", "body", "polygon", (0.02, 0.48, 0.98, 0.48, 0.82, 1.00, 0.18, 1.00)),
    ("lamp", "trim", "box", (0.46, 0.50, 0.54, 0.94, 0.00)),
    ("lamp", "trim", "ellipse", (0.26, 0.88, 0.74, 1.00)),
    ("lamp", "body", "polygon", (0.30, 0.02, 0.70, 0.02, 0.94, 0.50, 0.06, 0.50)),
    ("candle", "trim", "polygon", (0.50, 0.00, 0.60, 0.18, 0.50, 0.26, 0.40, 0.18)),
    ("candle", "trim", "box", (0.485, 0.22, 0.515, 0.34, 0.00)),
    ("candle", "trim", "ellipse", (0.08, 0.84, 0.92, 1.00)),
    ("candle", "body", "box", (0.32, 0.32, 0.68, 0.90, 0.02)),
    ("clock", "body", "ellipse", (0.04, 0.04, 0.96, 0.96)),
    ("clock", "trim", "ring", (0.04, 0.04, 0.96, 0.96, 0.08)),
    ("clock", "trim", "box", (0.47, 0.20, 0.53, 0.53, 0.00)),
    ("clock", "trim", "box", (0.47, 0.47, 0.76, 0.53, 0.00)),
    ("vase", "body", "ellipse", (0.16, 0.36, 0.84, 1.00)),
    ("vase", "body", "polygon", (0.38, 0.46, 0.42, 0.10, 0.58, 0.10, 0.62, 0.46)),
    ("vase", "trim", "ellipse", (0.32, 0.02, 0.68, 0.16)),
)


def draw_product(
    kind: str, shape: str, colour: str, pattern: str, *, side: int, rng: np.random.Generator
) -> bytes:
    """Draw one product and encode it as JPEG.

    Args:
        kind, shape, colour, pattern: levels of the factors of these names.
        side: width and height, in pixels.
        rng: decides what no factor decides: place, tilt, background, pattern phase, grain.

    Returns:
        JPEG bytes, RGB, `side` x `side`.
    """
    canvas = side * OVERSAMPLING
    ink = np.clip(np.array(COLOURS[colour]) + rng.integers(-14, 15, 3), 0, 255)
    width, height = (extent * canvas * rng.uniform(0.70, 0.80) for extent in ASPECT[shape])
    left = (canvas - width) / 2 + rng.uniform(-0.06, 0.06) * canvas
    top = (canvas - height) / 2 + rng.uniform(-0.06, 0.06) * canvas
    tilt = float(rng.uniform(-7, 7))

    def mask(part: str) -> Image.Image:
        image = Image.new("L", (canvas, canvas))
        draw = ImageDraw.Draw(image)
        extent = math.sqrt(width * height)
        for name, numbers in (row[2:] for row in OUTLINES if row[:2] == (kind, part)):
            pairs = zip(numbers[::2], numbers[1::2], strict=False)
            points = [(left + x * width, top + y * height) for x, y in pairs]
            if name == "polygon":
                draw.polygon(points, fill=255)
            elif name == "ellipse":
                draw.ellipse(points, fill=255)
            elif name == "ring":
                draw.ellipse(points, outline=255, width=round(numbers[4] * extent))
            else:
                draw.rounded_rectangle(points, numbers[4] * extent, fill=255)
        return image.rotate(tilt, Image.Resampling.BILINEAR)

    light = ink + (255 - ink) * 0.72
    inked = _pattern(pattern, canvas, rng)[..., None]
    layers = {
        "body": Image.fromarray(np.where(inked, light, ink).astype(np.uint8)),
        "trim": Image.new("RGB", (canvas, canvas), tuple(int(part) for part in ink * 0.55)),
    }
    picture = _background(canvas, rng)
    for part in dict.fromkeys(part for name, part, *_ in OUTLINES if name == kind):
        stencil = mask(part)
        picture.paste((60, 60, 60), mask=stencil.filter(ImageFilter.MaxFilter(3)))  # an edge
        picture.paste(layers[part], mask=stencil)
    picture = picture.resize((side, side), Image.Resampling.LANCZOS)
    grain = rng.normal(0, 3, (side, side, 1))
    picture = Image.fromarray(np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8))
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=88)
    return encoded.getvalue()


def _pattern(pattern: str, canvas: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Where the light ink of a pattern goes: bool [canvas, canvas]."""
    period = canvas / rng.uniform(8.5, 10.5)
    phase = rng.uniform(0, 1, 2)
    y, x = np.mgrid[:canvas, :canvas] / period + phase[:, None, None]
    if pattern == "stripes":
        return np.asarray(y % 1 < 0.5)
    if pattern == "dots":
        return np.asarray((x % 1 - 0.5) ** 2 + (y % 1 - 0.5) ** 2 < 0.33**2)
    if pattern == "checks":
        return np.asarray((x % 2 < 1) ^ (y % 2 < 1))
    return np.zeros((canvas, canvas), bool)


def _background(canvas: int, rng: np.random.Generator) -> Image.Image:
    """A pale wall and a slightly darker floor, RGB."""
    wall = rng.integers(215, 250, 3)
    rows = np.broadcast_to(wall, (canvas, canvas, 3)).astype(float).copy()
    rows *= np.linspace(1.0, rng.uniform(0.9, 1.0), canvas)[:, None, None]
    rows[int(canvas * rng.uniform(0.72, 0.85)) :] *= 0.92
    return Image.fromarray(np.clip(rows, 0, 255).astype(np.uint8))
