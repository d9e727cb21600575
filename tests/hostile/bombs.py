"""Peak memory of reading a catalogue of pictures that are small files and large pictures.

    python -m tests.hostile.bombs [--rows 200] [--kind one-bit]

Prints one JSON object: rows read, pictures found, peak resident memory of the process in MB.
"""

import argparse
import io
import json
import re
import tempfile
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sda_features.catalog.images import fit_within
from sda_features.catalog.rows import Catalog
from sda_features.config import CatalogSettings

SIDE = 7000
KINDS = {
    "one-bit": ("1", "PNG"),
    "grey": ("L", "PNG"),
    "grey16": ("I;16", "PNG"),
    "colour": ("RGB", "PNG"),
    "clear": ("RGBA", "PNG"),
    "palette": ("P", "GIF"),
    "webp": ("RGBA", "WEBP"),
    "jpeg": ("RGB", "JPEG"),
}


def encode(image, form="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def bomb(kind):
    """One colour, so that the file is small."""
    mode, form = KINDS[kind]
    return encode(Image.new(mode, (SIDE, SIDE)), form, **{"progressive": True} if form == "JPEG" else {})


def peak_kib():
    """Peak memory of this program; getrusage would count what the process was before it became this program."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--kind", choices=KINDS, default="one-bit")
    parser.add_argument("--whole", action="store_true", help="pictures are not scaled down by the reader")
    parser.add_argument("--file", type=Path, help="a picture made before: making it takes memory, too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "items.parquet"
        encoded = given.file.read_bytes() if given.file else bomb(given.kind)
        pq.write_table(
            pa.table({"item_id": [f"i{n}" for n in range(given.rows)], "image": [encoded] * given.rows}), path
        )
        shrink = None if given.whole else partial(fit_within, longest_side=256)
        before = peak_kib()
        items = Catalog(CatalogSettings.parse(path=path, max_bad_rows=1)).items(shrink=shrink)
        found = sum(item.image is not None for item in items)
    peak = peak_kib()
    print(
        json.dumps({"rows": given.rows, "pictures": found, "before_mb": before >> 10, "peak_mb": peak >> 10})
    )


if __name__ == "__main__":
    main()
