import numpy as np
import pytest

from sda_features.lvlm.validation import NEAREST, cooccurrence_recall


def test_pairs_are_looked_for_among_the_nearest_by_both_vectors() -> None:
    random = np.random.default_rng(0)
    text, image = random.normal(size=(2, 40, 6)).astype(np.float32)
    rows, columns = random.integers(40, size=(2, 200))
    rows, columns = rows[rows != columns], columns[rows != columns]

    def cosine(one: int, other: int) -> float:
        total = 0.0
        for vectors in (text.astype(np.float64), image.astype(np.float64)):
            a, b = vectors[one] - vectors.mean(axis=0), vectors[other] - vectors.mean(axis=0)
            total += a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        return total

    hits = []
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        better = sum(cosine(row, item) > cosine(row, column) for item in range(40) if item != row)
        hits.append(better < NEAREST)
    assert 0 < sum(hits) < len(hits)
    assert cooccurrence_recall(text, image, rows, columns) == pytest.approx(np.mean(hits))
