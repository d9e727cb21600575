import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sda_features.config import RecommenderSettings
from sda_features.errors import FeatureMismatchError
from sda_features.logs.interactions import index_interactions
from sda_features.recommenders.representations import ItemEncoder, Scaling, align_vectors, prepare_vectors
from sda_features.recommenders.sasrec import SASRec

REPLACE = RecommenderSettings(hidden_dim=4, fusion="replace", dropout=0.0)
JOIN = REPLACE.model_copy(update={"fusion": "join"})


def raw(items=7, dim=6, seed=0):
    """Long vectors with a large common mean, as a language model gives."""
    vectors = np.random.default_rng(seed).normal(0, 1, (items + 1, dim)) + 30
    vectors[0] = 0
    return vectors.astype(np.float32)


@given(st.permutations(["p", "q", "r", "s"]), st.integers(0, 4))
def test_vectors_meet_their_items_end_to_end(order, kept):
    log = index_interactions(["u"] * 4, ["s", "q", "r", "p"])
    vector_of = {name: np.full(2, ord(name), dtype=np.float32) for name in order[:kept]}
    vectors = np.stack([*vector_of.values(), np.full(2, -1.0)])  # and an item that the log does not know
    aligned = align_vectors(log.item_ids, [*vector_of, "stranger"], vectors)
    assert aligned.shape == (5, 2)
    assert aligned[0].tolist() == [0, 0]
    for code in range(1, 5):
        expected = vector_of.get(log.item_ids[code - 1].as_py(), np.zeros(2))
        assert aligned[code].tolist() == expected.tolist()


def standardise(vectors):
    return Scaling.fit(vectors).apply(vectors)


def test_the_first_and_last_item_keep_their_vectors_in_the_model():
    """The trap: a zero row put before the last item erases it and shifts nothing else."""
    item_ids = pa.array(["a", "b", "c"])
    aligned = align_vectors(item_ids, ["c", "a", "b"], np.array([[9.0, 0], [1, 5], [2, 3]]))
    torch.manual_seed(0)
    model = SASRec(3, REPLACE, prepare_vectors({"text": aligned}, 3))
    table = model.item_table().detach()
    assert table.shape == (4, 4)
    assert table[0].abs().max() == 0
    inputs = standardise(np.array([[1.0, 5], [2, 3], [9, 0]]))
    for code in (1, 2, 3):
        expected = model.items.out(model.items.down(torch.from_numpy(inputs[code - 1])))
        torch.testing.assert_close(table[code], expected)
        torch.testing.assert_close(model.items(torch.tensor([code]))[0], expected)


def test_standardised_vectors_have_no_mean_and_unit_size():
    vectors = raw()
    vectors[4] = 0
    values = standardise(vectors)
    assert values.dtype == np.float32
    assert values[[0, 4]].tolist() == np.zeros((2, 6)).tolist()
    found = values[[1, 2, 3, 5, 6, 7]].astype(np.float64)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-6)
    assert np.sqrt((found**2).sum(axis=1).mean()) == pytest.approx(1, abs=1e-6)
    # The geometry is kept: distances change by one factor.
    before = np.linalg.norm(vectors[1] - vectors[2:4], axis=1)
    after = np.linalg.norm(values[1] - values[2:4], axis=1)
    np.testing.assert_allclose(before[0] / before[1], after[0] / after[1], rtol=1e-4)
    np.testing.assert_allclose(standardise(vectors * 100), values, atol=1e-4)


@given(st.integers(0, 2**32 - 1), st.integers(2, 8))
@settings(max_examples=25)
def test_whitened_vectors_have_one_spread_in_all_directions(seed, rank):
    """Also where the items span fewer directions than there are: the others stay empty."""
    random = np.random.default_rng(seed)
    vectors = (random.normal(0, 1, (200, rank)) @ random.normal(0, 3, (rank, 8)) + 30).astype(np.float32)
    vectors[[0, 4]] = 0
    scaling = Scaling.fit(vectors, whiten=True)
    values = scaling.apply(vectors)
    assert not values[[0, 4]].any()
    found = values[vectors.any(axis=1)].astype(np.float64)
    covariance = found.T @ found / len(found)
    onto = np.linalg.svd(vectors[vectors.any(axis=1)] - scaling.mean, full_matrices=False)[2][:rank]
    np.testing.assert_allclose(covariance, onto.T @ onto / rank, atol=2e-3)
    one_by_one = np.concatenate([scaling.apply(vectors[row : row + 1]) for row in range(5)])
    np.testing.assert_allclose(one_by_one, values[:5], atol=1e-5)


def test_modalities_are_standardised_apart_and_counted():
    text, image = raw(dim=6), 100 * raw(dim=4, seed=1)
    image[[2, 5]] = 0
    text[5] = 0
    vectors = prepare_vectors({"text": text, "image": image}, 7)
    assert vectors.values.shape == (8, 10)
    np.testing.assert_array_equal(vectors.values[:, :6], standardise(text))
    np.testing.assert_array_equal(vectors.values[:, 6:], standardise(image))
    assert vectors.values[2, 6:].tolist() == [0] * 4
    assert vectors.found.tolist() == [False, True, True, True, True, False, True, True]
    assert vectors.blocks == {"text": {"dim": 6, "items": 6}, "image": {"dim": 4, "items": 5}}


@pytest.mark.parametrize("settings", [REPLACE, JOIN])
def test_the_folded_adapter_is_the_two_layers(settings):
    vectors = raw()
    vectors[3] = 0
    prepared = prepare_vectors({"text": vectors}, 7)
    torch.manual_seed(0)
    encoder = ItemEncoder(7, settings, prepared).double()
    expected = encoder.out(encoder.down(encoder.values)) * encoder.found
    if settings.fusion == "join":
        expected = expected + encoder.ids.weight
    torch.testing.assert_close(encoder.table(), expected)
    codes = torch.tensor([[3, 7, 0], [7, 1, 1]])
    torch.testing.assert_close(encoder(codes), expected[codes])
    assert encoder.table()[0].abs().max() == 0
    weights = list(encoder.parameters())
    mixing = torch.randn(2, 3, 4, dtype=torch.float64)
    ours = torch.autograd.grad((encoder(codes) * mixing).sum(), weights)
    theirs = torch.autograd.grad((expected[codes] * mixing).sum(), weights)
    for (name, _), one, other in zip(encoder.named_parameters(), ours, theirs, strict=True):
        assert other.abs().max() > 0, name
        if name == "ids.weight":
            other[0] = 0
        torch.testing.assert_close(one, other)


def test_shapes_and_state():
    encoder = ItemEncoder(7, JOIN, prepare_vectors({"text": raw()}, 7))
    assert set(encoder.state_dict()) == {"down.bias", "down.weight", "ids.weight", "out.bias", "out.weight"}
    assert encoder.down.weight.shape == (3, 6)
    assert encoder.out.weight.shape == (4, 3)
    assert ItemEncoder(7, REPLACE, prepare_vectors({"text": raw()}, 7)).ids is None
    assert sorted(ItemEncoder(7, REPLACE, None).state_dict()) == ["ids.weight"]


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        ({}, "at least one modality"),
        ({"text": raw()[1:]}, r"text: expected vectors \[8, D\], one row for padding.*got \[7, 6\]"),
        ({"text": np.roll(raw(), 1, axis=0)}, "row 0 is padding and must be zero"),
        ({"text": np.zeros((8, 6))}, "None of 7 items has a vector"),
        ({"text": np.full((8, 6), 3.0) * (np.arange(8) > 0)[:, None]}, "All 7 item vectors are"),
        ({"text": raw() + np.where(np.arange(8) == 5, np.nan, 0)[:, None]}, "NaN or infinity"),
    ],
)
def test_unusable_vectors_raise(modalities, message):
    with pytest.raises(FeatureMismatchError, match=message):
        prepare_vectors(modalities, 7)


def test_unusable_alignments_raise():
    with pytest.raises(FeatureMismatchError, match="1 item ids have several vectors"):
        align_vectors(pa.array(["a"]), ["a", "a"], np.ones((2, 3)))
    with pytest.raises(FeatureMismatchError, match="one row of vectors for each of 1 ids"):
        align_vectors(pa.array(["a"]), ["a"], np.ones((2, 3)))
