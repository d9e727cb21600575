import numpy as np
import pytest
import torch

from sda_features.errors import SettingsError
from sda_features.lvlm.reduction import fit_rotation, reduce_vectors


def sample(count: int = 200, dim: int = 12, rank: int = 3) -> np.ndarray:
    """Vectors that lie close to a subspace."""
    random = np.random.default_rng(0)
    inside = random.normal(size=(count, rank)) @ random.normal(size=(rank, dim))
    return (inside + 0.01 * random.normal(size=(count, dim))).astype(np.float32)


def test_all_dimensions_keep_every_dot_product() -> None:
    vectors = sample()
    rotation, kept = fit_rotation(vectors)
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(12), atol=1e-5, rtol=0)
    rotated = reduce_vectors(torch.from_numpy(vectors), rotation, 12).numpy()
    np.testing.assert_allclose(rotated @ rotated.T, vectors @ vectors.T, atol=1e-3)
    assert kept[-1] == pytest.approx(1)
    assert kept == sorted(kept)


def test_a_few_dimensions_are_those_of_the_best_approximation() -> None:
    vectors = sample()
    rotation, kept = fit_rotation(vectors)
    reduced = reduce_vectors(torch.from_numpy(vectors), rotation, 3).numpy()
    singular = np.linalg.svd(vectors.astype(np.float64), compute_uv=False)
    assert kept[2] == pytest.approx((singular[:3] ** 2).sum() / (singular**2).sum())
    assert np.square(reduced, dtype=np.float64).sum() == pytest.approx((singular[:3] ** 2).sum(), rel=1e-5)
    assert kept[2] > 0.99 > kept[1]


def test_it_does_not_depend_on_the_order_or_the_sign_of_eigenvectors() -> None:
    vectors = sample(rank=12)
    rotation, _ = fit_rotation(vectors)
    again, _ = fit_rotation(vectors[::-1].copy())
    torch.testing.assert_close(rotation, again, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dim", [0, 13])
def test_a_dimension_that_is_not_there_is_refused(dim: int) -> None:
    rotation, _ = fit_rotation(sample())
    with pytest.raises(SettingsError, match=f"Expected --dim from 1 to 12.*got {dim}"):
        reduce_vectors(torch.zeros(1, 12), rotation, dim)
