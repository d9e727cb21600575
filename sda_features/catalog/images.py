"""Item pictures: from a catalogue value (bytes, path or URL) to an RGB image, or to a stated problem.

A path stays inside the image root and names a regular file, a URL names an allowed host (fetch.py), and
only common raster formats are parsed, within limits on bytes and pixels.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sda_features.config import CatalogSettings
from sda_features.errors import ImageProblem

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
LARGE = 1 << 24  # pixels; a larger picture is averaged over squares of pixels until it is not
STRIP = 64  # rows of the result that are made at a time of a large picture
DECODING_BYTES = {"WEBP": 12}  # most bytes a pixel while a format is decoded
NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
ORIENTATION = 0x0112  # tag of EXIF
UPRIGHT = {  # its values
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image_bytes(
    value: bytes | str | None, settings: CatalogSettings, fetch: Callable[[str], bytes]
) -> bytes:
    """The encoded picture that a catalogue value holds or points to.

    Args:
        value: encoded bytes, a path or a URL.
        settings: image root and limits.
        fetch: gives the bytes of a URL, as `Fetcher.fetch`.

    Raises:
        ImageProblem: missing, not found, outside the root, too large, or what `fetch` raises.
    """
    if value is None or value in (b"", ""):
        raise ImageProblem("missing_image", "the image column is empty")
    if isinstance(value, bytes) and re.match(rb"(?i)\s*https?://", value):
        value = value.decode("utf-8", "replace")  # a text column that was written as binary
    if isinstance(value, str):
        is_url = re.match(r"(?i)\s*https?://", value)
        value = fetch(value.strip()) if is_url else _read_file(value, settings)
    if len(value) > settings.max_image_bytes:
        raise _too_many_bytes(settings)
    return value


def open_image(encoded: bytes, settings: CatalogSettings) -> Image.Image:
    """A picture of which the head is read, not yet the pixels.

    Raises:
        ImageProblem: not an image of a known format, or too many pixels; nothing else.
    """
    with image_problems(settings):
        image: Image.Image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        if image.width * image.height > settings.max_image_pixels:
            raise _too_many_pixels(f"{image.width} x {image.height}", settings)
        return image


def decoding_bytes(image: Image.Image) -> int:
    """The most memory that it takes to decode a picture, in bytes."""
    return image.width * image.height * DECODING_BYTES.get(image.format or "", 6)


def decode_image(image: Image.Image, settings: CatalogSettings) -> Image.Image:
    """Decode what `open_image` gave to upright RGB of at most `LARGE` pixels; transparent pixels become white.

    Raises:
        ImageProblem: not a readable image; nothing else.
    """
    with image_problems(settings):
        if (factor := _factor(image)) > 1:
            image.draft(image.mode, (image.width // factor, image.height // factor))  # JPEG: to 1/2, 1/4, 1/8
        image.load()
        turn = UPRIGHT.get(_orientation(image))
        image = _reduced(image).convert("RGB")
        return image if turn is None else image.transpose(turn)


@contextlib.contextmanager
def image_problems(settings: CatalogSettings) -> Iterator[None]:
    """Turn whatever libraries raise on a picture into an `ImageProblem`."""
    try:
        yield
    except ImageProblem:
        raise
    except MemoryError:
        raise ImageProblem("image_unreachable", "not enough memory to decode it") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels("more than Pillow decodes", settings) from None
    except UnidentifiedImageError:
        raise ImageProblem("broken_image", f"not a {', '.join(FORMATS)} image") from None
    except Exception as error:
        raise ImageProblem(
            "broken_image", f"not a readable {', '.join(FORMATS)} image: {type(error).__name__}: {error}"
        ) from None


def _orientation(image: Image.Image) -> int:
    """The orientation of EXIF, whatever state the other tags are in; 1 if there is none."""
    exif = image.info.get("exif")
    if isinstance(exif, bytes):
        exif = exif.removeprefix(b"Exif\0\0")
        order: Any = {b"II": "little", b"MM": "big"}.get(exif[:2])
        start = int.from_bytes(exif[4:8], order) if order else len(exif)
        end = start + 2 + 12 * int.from_bytes(exif[start : start + 2], order or "big")
        for entry in range(start + 2, min(end, len(exif)) - 11, 12):
            tag, kind = (int.from_bytes(exif[at : at + 2], order) for at in (entry, entry + 2))
            if tag == ORIENTATION and kind in (3, 4):  # 16 or 32 bits
                return int.from_bytes(exif[entry + 8 : entry + (10 if kind == 3 else 12)], order)
    with contextlib.suppress(Exception):  # in PNG and WebP it is in several places
        found = image.getexif().get(ORIENTATION, 1)
        return found if isinstance(found, int) else 1
    return 1


def _factor(image: Image.Image) -> int:
    """Side of the squares of pixels that are averaged, so that a picture has at most `LARGE` pixels."""
    return math.ceil(math.sqrt(image.width * image.height / LARGE))


def _reduced(image: Image.Image) -> Image.Image:
    """On white, with at most `LARGE` pixels; strip by strip if larger, because RGB takes four times the memory."""
    factor = _factor(image)
    if factor == 1:
        return _on_white(image)
    width, height = image.size
    small = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    for top in range(0, height, factor * STRIP):
        strip = image.crop((0, top, width, min(height, top + factor * STRIP)))
        small.paste(_on_white(strip).reduce(factor), (0, top // factor))
    return small


def _on_white(image: Image.Image) -> Image.Image:
    """RGB, or L of a grey picture, with eight bits; transparent pixels become white."""
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):  # 16 bits of grey: the upper ones, as Pillow takes them of colours
        grey = np.asarray(image).astype(np.int64)
        upper = (grey.clip(0, 65535) >> 8).astype(np.uint8)
        if isinstance(clear, int):
            upper[grey == clear] = 255
        return Image.fromarray(upper)
    if image.mode in ("RGBA", "LA", "PA") or clear is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def fit_within(image: Image.Image, longest_side: int) -> Image.Image:
    """Scale down so that the longest side has at most `longest_side` pixels; never scale up."""
    if max(image.size) <= longest_side:
        return image
    scale = longest_side / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def limit_aspect(image: Image.Image, most: int = 50) -> Image.Image:
    """Pad a picture longer than `most` times its width, or wider than so much its height, with white.

    Image processors refuse such a picture, or scale it up until it fills the memory.
    """
    width, height = image.size
    if max(width, height) <= most * min(width, height):
        return image
    size = (max(width, -(-height // most)), max(height, -(-width // most)))
    return ImageOps.pad(image, size, color="white")


def _read_file(value: str, settings: CatalogSettings) -> bytes:
    shown = _without_secrets(value)
    if settings.image_root is None and isinstance(settings.path, str):
        raise ImageProblem("image_not_found", f"{shown}: a catalogue at a URL needs --image-root for paths")
    try:
        root = (settings.image_root or Path(settings.path).parent).resolve()
        path = (root / value).resolve()
        if not path.is_relative_to(root):
            raise ImageProblem("path_outside_root", f"{shown} leaves the image root {root}")
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageProblem("image_not_found", f"{shown} under {root} is no regular file")
        # Not blocked by a pipe that has taken the file's place meanwhile.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageProblem("image_not_found", f"{shown} under {root} is no regular file")
            if status.st_size > settings.max_image_bytes:
                raise _too_many_bytes(settings)
            return stream.read(settings.max_image_bytes + 1)
    except ImageProblem:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, a surrogate; a loop of links in Python 3.11
        known = not isinstance(error, OSError) or error.errno in NOT_THERE
        why = error.strerror if isinstance(error, OSError) else error
        raise ImageProblem(
            "image_not_found" if known else "image_unreachable", f"{shown} under the image root: {why}"
        ) from None


def _without_secrets(value: str) -> str:
    """A value for messages: no query, where signatures are, no password, one line of ordinary length."""
    value = re.sub(r"//[^/@]*@", "//", value)
    head, mark, _ = value.partition("?")
    line = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in head[:200])
    return line + ("..." if len(head) > 200 or mark else "")


def _too_many_bytes(settings: CatalogSettings) -> ImageProblem:
    return ImageProblem(
        "oversized_image", f"more than {settings.max_image_bytes:,} bytes; see --max-image-bytes"
    )


def _too_many_pixels(size: str, settings: CatalogSettings) -> ImageProblem:
    return ImageProblem(
        "oversized_image", f"{size}: more than {settings.max_image_pixels:,} pixels; see --max-image-pixels"
    )
