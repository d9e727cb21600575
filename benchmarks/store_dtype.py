"""What smaller vectors cost and save: bytes of an item in Redis, and nearest neighbours that stay the same.

Every store dtype and dimension is written to a real server, which tells the memory of its keys, and
read back by EmbeddingClient; recall@10 is the share of each item's ten nearest neighbours by
float32 cosine that the smaller vectors still find. `--repo` takes the text vectors of a feature set,
otherwise clustered ones are generated. Dimensions are cut by the rotation that checkpoints carry.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import redis
import torch
from common import options, report
from numpy.typing import NDArray

from sda_features.feature_store.versions import open_version
from sda_features.lvlm.reduction import fit_rotation, reduce_vectors
from sda_features.offline.parts import newest_batches
from sda_features.offline.schema import matrix_of
from sda_features.serving import EmbeddingClient, codec, layout
from sda_features.serving.codec import STORE_DTYPES
from sda_features.serving.embedded import embedded_redis

Vectors = NDArray[np.float32]
NEIGHBOURS = 10


def main() -> None:
    """Measure and print."""
    arguments = options(
        __doc__ or "",
        ("--repo", {"type": Path, "help": "an applied Feast repo with vectors"}),
        ("--feature-set", {"default": "sda"}),
    )
    vectors = stored(arguments.repo, arguments.feature_set) if arguments.repo else clustered(arguments.quick)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    items, width = vectors.shape
    rotation, _ = fit_rotation(vectors)
    dims = [width, *(dim for dim in (512, 256, 128, 64) if dim < width)]
    exact = neighbours(vectors)
    rows = []
    with embedded_redis() as (host, port), redis.Redis(host, port) as server:
        for dim in dims:
            smaller = vectors
            if dim < width:
                smaller = reduce_vectors(torch.from_numpy(vectors), rotation, dim).numpy()
                smaller /= np.linalg.norm(smaller, axis=1, keepdims=True)
            for dtype in STORE_DTYPES:
                size, read = through_redis(server, smaller, dtype)
                found = neighbours(read)
                recall = np.mean(
                    [len(np.intersect1d(a, b)) / NEIGHBOURS for a, b in zip(exact, found, strict=True)]
                )
                rows.append(
                    {
                        "dim": dim,
                        "dtype": dtype,
                        "bytes": round(size, 1),
                        "recall@10": round(float(recall), 4),
                    }
                )
    print(
        f"\n{items} items, two vectors each; {'stored' if arguments.repo else 'generated'} vectors of {width}"
    )
    print(f"{'dim':>5} {'dtype':>8} {'bytes an item':>14} {'recall@10':>10}")
    for row in rows:
        print(f"{row['dim']:5} {row['dtype']:>8} {row['bytes']:14.0f} {row['recall@10']:10.4f}")
    whole, int8 = rows[0], rows[2]
    report(
        "store_dtype",
        against="float32 vectors of the same dimension, in Redis",
        ratio=float(whole["bytes"]) / float(int8["bytes"]),
        table=rows,
    )


def through_redis(server: redis.Redis, vectors: Vectors, dtype: str) -> tuple[float, Vectors]:
    """Mean memory of a key whose hash holds an item's two vectors, in bytes, and the vectors as they are read."""
    server.flushall()
    ids = [str(row) for row in range(len(vectors))]
    view = layout.view_name("sda")
    keys = layout.redis_keys(ids, project="shop")
    fields = [layout.hash_field(view, feature) for feature in layout.FEATURES]
    values = codec.encode_vectors(vectors, dtype=dtype)  # type: ignore[arg-type]
    stamp, version = codec.encode_timestamp(1_700_000_000), codec.encode_string("0123456789ab")
    with server.pipeline(transaction=False) as pipeline:
        for key, value in zip(keys, values, strict=True):
            row = dict(zip(fields, (value, value, version), strict=True))
            pipeline.hset(key, mapping={**row, layout.timestamp_field(view): stamp})
        pipeline.execute()
        for key in keys:
            pipeline.memory_usage(key, samples=0)
        sizes = pipeline.execute()
    with EmbeddingClient(server, project="shop") as client:
        found = client.get(ids)
    return float(np.mean(sizes)), found.text


def neighbours(vectors: Vectors) -> NDArray[np.int64]:
    """Rows of the ten most similar other vectors of each, by cosine."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similar = unit @ unit.T
    np.fill_diagonal(similar, -np.inf)
    return np.argpartition(-similar, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]


def stored(repo: Path, feature_set: str) -> Vectors:
    """The text vectors of a feature set."""
    opened = open_version(repo, feature_set)
    blocks = [matrix_of(batch["text_embedding"]) for batch in newest_batches(opened.folder)]
    return np.concatenate([matrix[found] for matrix, found in blocks])


def clustered(quick: bool) -> Vectors:
    """Vectors around 200 centres, with a spectrum that falls off as that of encoders does."""
    random = np.random.default_rng(0)
    items, width = (1000, 256) if quick else (4000, 1024)
    falling = np.arange(1, width + 1) ** -0.5
    centres = random.normal(size=(200, width)) * falling
    vectors = centres[random.integers(200, size=items)] + 0.7 * random.normal(size=(items, width)) * falling
    return vectors.astype(np.float32)


if __name__ == "__main__":
    main()
