"""Item vectors by name: from a real Feast repo, from files, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sda_features.errors import FeatureMismatchError, FeatureStoreError
from sda_features.feature_store.repo import open_feature_set
from sda_features.workflows.features import Features, load_features
from tests.feast_repo import Rows, make_repo

__all__ = ["make_repo"]  # a fixture

IDS = ["a", "b", "c", "d", "e", "f"]
ROWS = Rows.random(IDS[:5])  # the text of b and the image of b are missing
LOG_IDS = pa.array(["f", "e", "c", "b", "a"])  # f is unknown to Feast, d is in no interaction


def vectors_of(name: object, item_ids: pa.Array, repo: Path | None = None) -> Features:
    """Features that are not ids alone."""
    found = load_features(str(name), item_ids, repo)
    assert found.modalities is not None
    return found


@pytest.fixture
def repo(make_repo: Callable[..., Path]) -> Path:
    folder = make_repo(server=None)
    ROWS.write(open_feature_set(folder, "sda").folder)
    return folder


def test_a_feature_set_is_aligned_with_the_codes_of_the_log(repo):
    found = vectors_of("sda", LOG_IDS, repo)
    assert list(found.modalities) == ["text", "image"]
    assert (found.version, found.items, found.label) == ("v1", 5, "sda")
    for name, stored in {"text": ROWS.text, "image": ROWS.image}.items():
        matrix = found.modalities[name]
        assert matrix.dtype == np.float32
        assert not matrix[:2].any(), "padding, and an id that Feast does not know"
        for code, item in enumerate(LOG_IDS.to_pylist()[1:], start=2):
            np.testing.assert_array_equal(matrix[code], stored[IDS.index(item)])
        assert not matrix[4].any(), "vacuous: b has no vector"
    assert found.without_vector == 2


def test_one_modality_of_a_feature_set(repo):
    both = vectors_of("sda", LOG_IDS, repo)
    hashes = {both.sha256}
    for modality in ("text", "image"):
        found = vectors_of(f"sda-{modality}", LOG_IDS, repo)
        assert list(found.modalities) == [modality]
        np.testing.assert_array_equal(found.modalities[modality], both.modalities[modality])
        assert found.label == f"sda-{modality}"
        hashes.add(found.sha256)
    assert len(hashes) == 3
    assert load_features("sda", LOG_IDS, repo).sha256 == both.sha256
    with pytest.raises(FeatureMismatchError, match=r"No features 'sda-sound'. Expected id, a feature set"):
        load_features("sda-sound", LOG_IDS, repo)


def test_a_modality_that_no_item_has_is_refused(repo):
    text, there = np.ones((2, 5), np.float32), np.ones(2, bool)
    only_text = Rows(["x", "y"], text, there, 0 * text, ~there)
    only_text.write(open_feature_set(repo, "sda").folder)
    with pytest.raises(
        FeatureMismatchError, match=r"a vector of its image in feature set 'sda'; it has text"
    ):
        load_features("sda-image", pa.array(["x", "y"]), repo)
    with pytest.raises(FeatureMismatchError, match=r"None of the 1 items of the log, such as 'nobody'"):
        load_features("sda", pa.array(["nobody"]), repo)
    with pytest.raises(FeatureStoreError, match="clip_item_embeddings"):
        load_features("clip", LOG_IDS, repo)


def test_ids_alone_need_no_repo():
    found = load_features("id", LOG_IDS)
    assert (found.modalities, found.version, found.sha256, found.without_vector) == (None, None, None, 0)


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float32()), pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 2)],
)
def test_a_file_gives_a_modality_a_column(tmp_path, kind):
    table = pa.table(
        {
            "item_id": ["b", "nobody", "e"],
            "title": ["", "", ""],
            "vit": pa.array([[1, 2], [3, 4], None], kind),
            "bert": pa.array([None, None, [5, 6]], kind),
            "unused": pa.array([None, [7, 8], None], kind),
        }
    )
    pq.write_table(table, tmp_path / "mine.parquet")
    found = vectors_of(tmp_path / "mine.parquet", LOG_IDS)
    assert {name: matrix.tolist() for name, matrix in found.modalities.items()} == {
        "vit": [[0, 0], [0, 0], [0, 0], [0, 0], [1, 2], [0, 0]],
        "bert": [[0, 0], [0, 0], [5, 6], [0, 0], [0, 0], [0, 0]],
    }
    assert (found.label, found.version, found.without_vector) == ("mine", None, 3)


def test_integer_ids_of_a_file_are_written_in_decimal(tmp_path):
    table = pa.table({"item_id": [10, 7], "v": pa.array([[1.0], [2.0]], pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "v.parquet")
    found = vectors_of(tmp_path / "v.parquet", pa.array(["7", "10"]))
    assert found.modalities["v"].ravel().tolist() == [0, 2, 1]


VECTORS = pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32()))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a", "b"], "v": VECTORS}, r"expected a column item_id .* got id \(string\), v \(list"),
        ({"item_id": ["a", "b"], "price": [1.0, 2.0]}, r"at least one column of lists of numbers"),
        ({"item_id": ["x", "y"], "v": VECTORS}, r"None of the 5 items of the log, such as 'f'"),
        ({"item_id": ["a", "a"], "v": VECTORS}, r"v.parquet: 1 item ids have several vectors"),
        ({"item_id": ["a", "b"], "v": [[1.0], [1.0, 2.0]]}, r"v.parquet: .*lengths 1 to 2"),
        ({"item_id": ["a", "b"], "v": [[1.0], [float("nan")]]}, r"v.parquet: Expected finite numbers in v"),
    ],
)
def test_files_that_are_no_vectors_are_named(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "v.parquet")
    with pytest.raises(FeatureMismatchError, match=message):
        load_features(str(tmp_path / "v.parquet"), LOG_IDS)
    with pytest.raises(FeatureMismatchError, match="none.parquet does not exist"):
        load_features(str(tmp_path / "none.parquet"), LOG_IDS)


def test_one_space_is_the_mean_of_the_modalities_an_item_has(tmp_path):
    random = np.random.default_rng(0)
    text, image = random.normal(3, 1, (2, 4, 3))
    rows = {
        "item_id": ["a", "b", "c", "d"],
        "text": [text[0], text[1], None, None],
        "image": [image[0], None, image[2], None],
    }
    pq.write_table(pa.table(rows), tmp_path / "v.parquet")
    found = vectors_of(f"{tmp_path}/v.parquet:shared", pa.array(rows["item_id"]))
    assert list(found.modalities) == ["shared"]
    texts, images = text[:2] - text[:2].mean(axis=0), image[[0, 2]] - image[[0, 2]].mean(axis=0)
    units = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (texts, images)]
    both = units[0][0] + units[1][0]
    expected = [both / np.linalg.norm(both), units[0][1], units[1][1], np.zeros(3)]
    np.testing.assert_allclose(found.modalities["shared"][1:], expected, atol=1e-6)


def test_one_space_needs_one_dimension(tmp_path):
    pq.write_table(
        pa.table({"item_id": ["a"], "text": [[1.0, 2.0]], "image": [[1.0, 2.0, 3.0]]}), tmp_path / "v.parquet"
    )
    with pytest.raises(FeatureMismatchError, match="One space needs vectors of one dimension; got .*2.*3"):
        load_features(f"{tmp_path}/v.parquet:shared", pa.array(["a"]))
