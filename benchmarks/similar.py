"""Nearest items from the index against exact search, one query at a time on one thread, as a service asks.

The items are drawn around 2,000 centres in 64 dimensions, as products lie around their kinds; or,
with --vectors, around the first 64 principal components of real vectors, so that their density is
that of a real catalogue. Noise of half a vector's length, in all, makes them different. Queries are
drawn the same way and are no items. The index is what `sda-features index` writes. Exact search is
faiss's own flat index, which is a matrix-vector product and a heap.
"""

from __future__ import annotations

import time

import faiss
import numpy as np
import pyarrow.parquet as pq
from common import median, options, report, take_turns

from sda_features.evaluation.neighbours import unit_rows
from sda_features.workflows.similar import build_index

DIM, CENTRES, K, QUERIES = 64, 2000, 10, 100


def main() -> None:
    given = options(
        str(__doc__),
        ("--items", {"type": int}),
        ("--vectors", {"metavar": "PARQUET", "help": "table of real vectors to draw around"}),
        ("--column", {"default": "text", "help": "their column"}),
    )
    items = given.items or (50_000 if given.quick else 1_000_000)
    rng = np.random.default_rng(0)
    centres = (
        principal(given.vectors, given.column)
        if given.vectors
        else unit_rows(rng.normal(size=(CENTRES, DIM)))
    )
    rows = rng.normal(scale=0.5 / DIM**0.5, size=(items + QUERIES, DIM)).astype(np.float32)
    rows += centres[rng.integers(0, len(centres), len(rows))]
    rows = unit_rows(rows)
    rows, asked = rows[:items], rows[items:]

    faiss.omp_set_num_threads(1)
    started = time.process_time()
    index, _ = build_index(rows)
    built = time.process_time() - started
    exact = faiss.IndexFlatIP(DIM)
    exact.add(rows)
    truth = exact.search(asked, K)[1]
    found = index.search(asked, K)[1]
    recall = float((truth[:, :, None] == found[:, None, :]).any(axis=2).mean())
    times = take_turns(
        {
            "exact": lambda: [exact.search(query[None], K) for query in asked],
            "index": lambda: [index.search(query[None], K) for query in asked],
        },
        rounds=3 if given.quick else 5,
        clock=time.process_time,
    )
    theirs, ours = (median(times[name]) / QUERIES for name in ("exact", "index"))
    print(f"{items:,} items x {DIM}, built in {built:.0f} s of one core")
    print(f"a query: exact {1e3 * theirs:.2f} ms, index {1e3 * ours:.3f} ms")
    against = f"faiss.IndexFlatIP {faiss.__version__}"
    report("similar", against=against, ratio=theirs / ours, items=items, recall=round(recall, 4))


def principal(path: str, column: str) -> np.ndarray:
    """The first `DIM` principal components of the vectors in a table, unit rows."""
    lists = pq.read_table(path, columns=[column])[column].combine_chunks()
    vectors = lists.flatten().to_numpy().reshape(len(lists), -1)
    vectors = vectors - vectors.mean(axis=0)
    directions = np.linalg.eigh(vectors.T @ vectors)[1][:, ::-1][:, :DIM]
    return unit_rows(vectors @ directions)


if __name__ == "__main__":
    main()
