"""Nearest items from the index against exact search, one query at a time on one thread, as a service asks.

The items are drawn around 2,000 centres in 64 dimensions, as products lie around their kinds. The
index is what `sda-features index` writes. Exact search is faiss's own flat index, which is a
matrix-vector product and a heap.
"""

from __future__ import annotations

import time

import faiss
import numpy as np
from common import median, options, report, take_turns

from sda_features.evaluation.neighbours import unit_rows
from sda_features.workflows.similar import build_index

DIM, CENTRES, K = 64, 2000, 10


def main() -> None:
    given = options(str(__doc__), ("--items", {"type": int}))
    items = given.items or (50_000 if given.quick else 1_000_000)
    queries = 100
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CENTRES, DIM)).astype(np.float32)
    rows = unit_rows(
        centres[rng.integers(0, CENTRES, items)] + 0.7 * rng.normal(size=(items, DIM)).astype(np.float32)
    )
    asked = rows[rng.choice(items, queries, replace=False)]

    started = time.perf_counter()
    index = build_index(rows)
    built = time.perf_counter() - started
    exact = faiss.IndexFlatIP(DIM)
    exact.add(rows)
    faiss.omp_set_num_threads(1)
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
    theirs, ours = (median(times[name]) / queries for name in ("exact", "index"))
    print(f"{items:,} items x {DIM}, built in {built:.0f} s")
    print(f"a query: exact {1e3 * theirs:.2f} ms, index {1e3 * ours:.3f} ms")
    against = f"faiss.IndexFlatIP {faiss.__version__}"
    report("similar", against=against, ratio=theirs / ours, items=items, recall=round(recall, 4))


if __name__ == "__main__":
    main()
