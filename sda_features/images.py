"""Item pictures: from a catalogue value (bytes, path or URL) to an RGB image, or to a stated problem.

A path stays inside the image root, a URL names an allowed host and is not redirected, and only
common raster formats are parsed, within limits on bytes and pixels.
"""

from __future__ import annotations

import io
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image, ImageOps

from sda_features.config import CatalogSettings

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
CONNECT_TIMEOUT, READ_TIMEOUT = 5.0, 30.0  # seconds


class ImageProblem(Exception):
    """Why a picture is not usable.

    Attributes:
        reason: stable name for reports, e.g. "broken_image".
        detail: one sentence for a person.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def read_image_bytes(value: bytes | str | None, settings: CatalogSettings) -> bytes:
    """The encoded picture that a catalogue value holds or points to.

    Raises:
        ImageProblem: missing, not found, outside the root, host not allowed, too large, not fetched.
    """
    if value is None or value in (b"", ""):
        raise ImageProblem("missing_image", "the image column is empty")
    if isinstance(value, str):
        is_url = value.startswith(("http://", "https://"))
        value = _download(value, settings) if is_url else _read_file(value, settings)
    if len(value) > settings.max_image_bytes:
        raise _too_many_bytes(settings)
    return value


def decode_image(encoded: bytes, settings: CatalogSettings) -> Image.Image:
    """Decode to an upright RGB image; transparent pixels become white.

    Raises:
        ImageProblem: not an image of a known format, truncated, or too many pixels.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        if image.width * image.height > settings.max_image_pixels:
            raise _too_many_pixels(f"{image.width} x {image.height}", settings)
        image.load()
        image = ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels("more than Pillow decodes", settings) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's decoders raise on bad data
        raise ImageProblem("broken_image", f"not a readable {', '.join(FORMATS)} image: {error}") from None
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


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
    if settings.image_root is None and isinstance(settings.path, str):
        raise ImageProblem("image_not_found", f"{value}: a catalogue at a URL needs --image-root for paths")
    root = (settings.image_root or Path(settings.path).parent).resolve()
    path = (root / value).resolve()
    if not path.is_relative_to(root):
        raise ImageProblem("path_outside_root", f"{value} leaves the image root {root}")
    try:
        if path.stat().st_size > settings.max_image_bytes:
            raise _too_many_bytes(settings)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise ImageProblem("image_not_found", f"{value} under {root}: {error}") from None


def _download(url: str, settings: CatalogSettings) -> bytes:
    import requests

    host = urlsplit(url).hostname
    if host not in settings.image_hosts:
        allowed = ", ".join(settings.image_hosts) or "none"
        raise ImageProblem(
            "host_not_allowed", f"host {host} is not in the allow-list ({allowed}); see --image-hosts"
        )
    try:
        with requests.get(
            url, stream=True, allow_redirects=False, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT)
        ) as response:
            if response.status_code != 200:
                raise ImageProblem("download_failed", f"{host} answered {response.status_code}, expected 200")
            content = bytearray()
            for chunk in response.iter_content(1 << 16):
                content += chunk
                if len(content) > settings.max_image_bytes:
                    raise _too_many_bytes(settings)
            return bytes(content)
    except requests.RequestException as error:
        raise ImageProblem("download_failed", f"{host}: {type(error).__name__}") from None


def _too_many_bytes(settings: CatalogSettings) -> ImageProblem:
    return ImageProblem(
        "oversized_image", f"more than {settings.max_image_bytes:,} bytes; see --max-image-bytes"
    )


def _too_many_pixels(size: str, settings: CatalogSettings) -> ImageProblem:
    return ImageProblem(
        "oversized_image", f"{size}: more than {settings.max_image_pixels:,} pixels; see --max-image-pixels"
    )
