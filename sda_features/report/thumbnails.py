"""Pictures of items as a few large WebP sheets, within a stated size."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image, ImageOps

PER_ROW = 32
PER_SHEET = PER_ROW * PER_ROW
QUALITY = 60


@dataclass(frozen=True)
class Sheets:
    """Thumbnails side by side: item i is cell `i % PER_SHEET` of sheet `i // PER_SHEET`.

    Attributes:
        side: side of a cell, in pixels.
        urls: one data URL a sheet.
        bytes: their length in all.
    """

    side: int
    urls: list[str]
    bytes: int


def thumbnail(picture: Image.Image | None, side: int) -> Image.Image | None:
    """The picture inside a square of `side` pixels, on white."""
    return None if picture is None else ImageOps.pad(picture.convert("RGB"), (side, side), color="white")


def make_sheets(thumbnails: Iterable[Image.Image | None], side: int, *, max_bytes: int) -> Sheets:
    """Pack thumbnails; what would exceed `max_bytes` is left out, so that the last items have none.

    Args:
        thumbnails: RGB, `side` by `side`, in the order of the items; None: an empty cell.
        side: in pixels.
        max_bytes: largest total length of the data URLs.
    """
    cells = list(thumbnails)
    urls: list[str] = []
    length = 0
    for start in range(0, len(cells), PER_SHEET):
        of_sheet = cells[start : start + PER_SHEET]
        size = (PER_ROW * side, -(-len(of_sheet) // PER_ROW) * side)
        sheet = Image.new("RGB", size, "white")
        for place, picture in enumerate(of_sheet):
            if picture is not None:
                sheet.paste(picture, (place % PER_ROW * side, place // PER_ROW * side))
        url = _data_url(sheet)
        if length + len(url) > max_bytes:
            break
        urls.append(url)
        length += len(url)
    return Sheets(side, urls, length)


def _data_url(sheet: Image.Image) -> str:
    encoded = io.BytesIO()
    sheet.save(encoded, "WEBP", quality=QUALITY, method=2)
    return "data:image/webp;base64," + base64.b64encode(encoded.getvalue()).decode()
