"""Product pictures drawn with Pillow: an outline for each kind, a colour, a pattern, a background.

A kind is a list of primitives in a unit square, x to the right and y down. `body` takes the colour
and the pattern, `trim` a darker shade. The shape factor squeezes the square.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from sda_features.demo.factors import COLOURS

Primitive = tuple[str, tuple[float, ...]]

OVERSAMPLING = 2
ASPECT = {"slim": (0.58, 1.0), "regular": (0.86, 0.86), "wide": (1.0, 0.58)}  # width, height


@dataclass(frozen=True)
class Outline:
    """How one kind is drawn: patterned `body`, plain `trim` behind it or in front of it."""

    body: tuple[Primitive, ...]
    trim: tuple[Primitive, ...]
    trim_in_front: bool = False


OUTLINES: dict[str, Outline] = {
    "mug": Outline(
        (("box", (0.10, 0.12, 0.70, 0.95, 0.08)),),
        (("ring", (0.52, 0.28, 0.98, 0.76, 0.09)), ("ellipse", (0.10, 0.04, 0.70, 0.22))),
    ),
    "bottle": Outline(
        (
            ("box", (0.25, 0.36, 0.75, 1.00, 0.10)),
            ("polygon", (0.27, 0.42, 0.42, 0.18, 0.58, 0.18, 0.73, 0.42)),
        ),
        (("box", (0.40, 0.00, 0.60, 0.20, 0.03)),),
        trim_in_front=True,
    ),
    "teapot": Outline(
        (("ellipse", (0.18, 0.28, 0.78, 0.98)),),
        (
            ("polygon", (0.70, 0.72, 1.00, 0.30, 0.92, 0.26, 0.66, 0.52)),
            ("ring", (0.00, 0.38, 0.36, 0.84, 0.07)),
            ("ellipse", (0.30, 0.22, 0.66, 0.38)),
            ("ellipse", (0.42, 0.12, 0.54, 0.26)),
        ),
    ),
    "bowl": Outline(
        (("polygon", (0.00, 0.34, 1.00, 0.34, 0.90, 0.66, 0.70, 0.86, 0.30, 0.86, 0.10, 0.66)),),
        (("ellipse", (0.00, 0.24, 1.00, 0.44)), ("box", (0.34, 0.84, 0.66, 0.94, 0.02))),
        trim_in_front=True,
    ),
    "chair": Outline(
        (("box", (0.14, 0.02, 0.42, 0.58, 0.05)), ("box", (0.14, 0.50, 0.90, 0.66, 0.04))),
        (("box", (0.16, 0.62, 0.25, 1.00, 0.0)), ("box", (0.79, 0.62, 0.88, 1.00, 0.0))),
    ),
    "table": Outline(
        (("box", (0.00, 0.22, 1.00, 0.42, 0.03)),),
        (("box", (0.08, 0.40, 0.18, 1.00, 0.0)), ("box", (0.82, 0.40, 0.92, 1.00, 0.0))),
    ),
    "shelf": Outline(
        (
            ("box", (0.16, 0.06, 0.84, 0.31, 0.0)),
            ("box", (0.16, 0.375, 0.84, 0.625, 0.0)),
            ("box", (0.16, 0.69, 0.84, 0.94, 0.0)),
        ),
        (("box", (0.08, 0.00, 0.92, 1.00, 0.02)),),
    ),
    "basket": Outline(
        (("polygon", (0.02, 0.48, 0.98, 0.48, 0.82, 1.00, 0.18, 1.00)),),
        (("ring", (0.18, 0.04, 0.82, 0.92, 0.07)),),
    ),
    "lamp": Outline(
        (("polygon", (0.30, 0.02, 0.70, 0.02, 0.94, 0.50, 0.06, 0.50)),),
        (("box", (0.46, 0.50, 0.54, 0.94, 0.0)), ("ellipse", (0.26, 0.88, 0.74, 1.00))),
    ),
    "candle": Outline(
        (("box", (0.32, 0.32, 0.68, 0.90, 0.02)),),
        (
            ("polygon", (0.50, 0.00, 0.60, 0.18, 0.50, 0.26, 0.40, 0.18)),
            ("box", (0.485, 0.22, 0.515, 0.34, 0.0)),
            ("ellipse", (0.08, 0.84, 0.92, 1.00)),
        ),
    ),
    "clock": Outline(
        (("ellipse", (0.04, 0.04, 0.96, 0.96)),),
        (
            ("ring", (0.04, 0.04, 0.96, 0.96, 0.08)),
            ("box", (0.47, 0.20, 0.53, 0.53, 0.0)),
            ("box", (0.47, 0.47, 0.76, 0.53, 0.0)),
        ),
        trim_in_front=True,
    ),
    "vase": Outline(
        (
            ("ellipse", (0.16, 0.36, 0.84, 1.00)),
            ("polygon", (0.38, 0.46, 0.42, 0.10, 0.58, 0.10, 0.62, 0.46)),
        ),
        (("ellipse", (0.32, 0.02, 0.68, 0.16)),),
        trim_in_front=True,
    ),
}


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

    def mask(primitives: tuple[Primitive, ...]) -> Image.Image:
        image = Image.new("L", (canvas, canvas))
        draw = ImageDraw.Draw(image)
        for name, numbers in primitives:
            _draw_primitive(draw, name, numbers, left, top, width, height)
        return image.rotate(tilt, Image.Resampling.BILINEAR)

    outline = OUTLINES[kind]
    body, trim = mask(outline.body), mask(outline.trim)
    light = ink + (255 - ink) * 0.72
    inked = _pattern(pattern, canvas, rng)[..., None]
    fill = Image.fromarray(np.where(inked, light, ink).astype(np.uint8))
    dark = Image.new("RGB", (canvas, canvas), tuple(int(part) for part in ink * 0.55))

    picture = _background(canvas, rng)
    layers = [(dark, trim), (fill, body)]
    if outline.trim_in_front:
        layers.reverse()
    for layer, layer_mask in layers:
        edge = layer_mask.filter(ImageFilter.MaxFilter(3))
        picture.paste(Image.new("RGB", picture.size, (60, 60, 60)), mask=edge)
        picture.paste(layer, mask=layer_mask)
    picture = picture.resize((side, side), Image.Resampling.LANCZOS)
    grain = rng.normal(0, 3, (side, side, 1))
    picture = Image.fromarray(np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8))
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=88)
    return encoded.getvalue()


def _draw_primitive(
    draw: ImageDraw.ImageDraw,
    name: str,
    numbers: tuple[float, ...],
    left: float,
    top: float,
    width: float,
    height: float,
) -> None:
    if name == "polygon":
        points = zip(numbers[::2], numbers[1::2], strict=True)
        draw.polygon([(left + x * width, top + y * height) for x, y in points], fill=255)
        return
    x0, y0, x1, y1 = numbers[:4]
    box = (left + x0 * width, top + y0 * height, left + x1 * width, top + y1 * height)
    extent = math.sqrt(width * height)
    if name == "ellipse":
        draw.ellipse(box, fill=255)
    elif name == "ring":
        draw.ellipse(box, outline=255, width=round(numbers[4] * extent))
    else:
        draw.rounded_rectangle(box, numbers[4] * extent, fill=255)


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
