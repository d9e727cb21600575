"""Neighbours and measures of a space, against plain twins and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sda_features.evaluation.neighbours import identical, kept_share, nearest, purity, unit_rows
from sda_features.evaluation.space import effective_rank, one_modality, two_modalities


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 12), st.booleans())
def test_nearest_is_a_full_sort(seed: int, n: int, k: int, excluded: bool) -> None:
    rng = np.random.default_rng(seed)
    base = rng.integers(-2, 3, (n, 3)).astype(np.float32)  # small whole numbers: many ties, some zero rows
    found = nearest(base, base, k, own=range(n) if excluded else None)
    for row in range(n):
        scores = base @ base[row]
        others = [other for other in range(n) if base[other].any() and not (excluded and other == row)]
        candidates = others if base[row].any() else []
        best = sorted(candidates, key=lambda other: (-scores[other], other))[:k]
        got = [other for other in found[row] if other >= 0]
        assert [scores[other] for other in got] == [scores[other] for other in best]
        assert len(set(got)) == len(got)
        assert set(got) <= set(candidates)


def test_centring_leaves_missing_vectors_out() -> None:
    rows = unit_rows(np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]], np.float32))
    np.testing.assert_allclose(rows, [[0.5**0.5, -(0.5**0.5)], [-(0.5**0.5), 0.5**0.5], [0, 0]], atol=1e-7)


def test_kept_share_by_hand() -> None:
    before = np.array([[1, 2], [0, -1]], np.int32)
    after = np.array([[2, 3], [0, 1]], np.int32)
    assert kept_share(before, after) == pytest.approx(2 / 3)
    assert kept_share(np.full((2, 2), -1), after) is None


def test_purity_by_hand() -> None:
    neighbours = np.array([[1, 2], [0, 3], [3, -1], [2, 0]], np.int32)
    share, chance = purity(neighbours, ["a", "a", "b", None])
    assert share == pytest.approx(2 / 3)  # 0->1 yes, 0->2 no, 1->0 yes; the last item has no label
    assert chance == pytest.approx(2 / 6)
    assert purity(neighbours, [None] * 4) is None


def test_identical_counts_the_others() -> None:
    rows = unit_rows(np.array([[1, 0], [1, 0], [0, 1], [0, 0]], np.float32), centre=False)
    assert identical(rows, np.arange(4)).tolist() == [1, 1, 0, 0]


def test_effective_rank_of_equal_directions_is_their_number() -> None:
    assert effective_rank(np.eye(5)) == pytest.approx(5)
    assert effective_rank(np.outer(np.arange(1, 4), np.ones(5))) == pytest.approx(1)


def test_a_collapsed_space_shows() -> None:
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(200, 16)).astype(np.float32)
    collapsed = 100 + 0.01 * spread
    one_way = np.outer(np.arange(200) - 99.5, np.ones(16)).astype(np.float32)
    wide, point, line = (one_modality(space, np.ones(200, bool)) for space in (spread, collapsed, one_way))
    assert point.spread == pytest.approx(1, abs=1e-4)
    assert wide.spread < 0.3
    assert line.effective_rank < 1.1 < wide.effective_rank


def test_equal_vectors_are_aligned() -> None:
    vectors = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)
    both = np.ones(50, bool)
    same = two_modalities(vectors, vectors, both)
    assert same.alignment == pytest.approx(0)
    assert same.modality_gap == pytest.approx(0)
    assert same.text_to_image == {1: 1.0, 10: 1.0}
    assert two_modalities(vectors, vectors[:, :4], both).alignment is None
