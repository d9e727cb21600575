"""Names, keys and fields against stock Feast's serialisers: byte for byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sda_features.errors import FeatureMismatchError, SettingsError
from sda_features.serving import layout
from tests.reference import redis_layout as reference

texts = st.text(min_size=1, max_size=40)
integers = {"int32": st.integers(-(2**31), 2**31 - 1), "int64": st.integers(-(2**63), 2**63 - 1)}


@given(project=texts, join_key=texts, item_id=st.text(max_size=40))
def test_string_keys_are_feasts(project, join_key, item_id):
    (key,) = layout.redis_keys([item_id], project=project, join_key=join_key)
    assert key == reference.key(project, join_key, item_id, "string")


@pytest.mark.parametrize("id_type", ["int32", "int64"])
@given(data=st.data())
def test_integer_keys_are_feasts(id_type, data):
    item_id = data.draw(integers[id_type])
    keys = layout.redis_keys([item_id, str(item_id)], project="shop", id_type=id_type)
    assert keys == [reference.key("shop", "item_id", item_id, id_type)] * 2


@pytest.mark.parametrize("bad", ["007", "+7", " 7", "7.0", "seven", "", str(2**31), 2**31])
def test_an_id_that_is_no_integer_is_refused(bad):
    with pytest.raises(FeatureMismatchError, match="ids of type int32"):
        layout.redis_keys([bad], project="shop", id_type="int32")


@given(view=texts, feature=texts)
def test_field_names_are_feasts(view, feature):
    assert layout.hash_field(view, feature) == reference.field(view, feature)


@pytest.mark.parametrize(
    ("data", "expected"), [(b"", 0), (b"a", 0x3C2569B2), (b"abcd", 0x43ED676A), (b"\xff" * 5, None)]
)
def test_murmur3_known_values(data, expected):
    mmh3 = pytest.importorskip("mmh3")
    assert layout.murmur3_32(data) == mmh3.hash(data, signed=False)
    if expected is not None:
        assert layout.murmur3_32(data) == expected


@pytest.mark.parametrize("name", ["", "a-b", "a:b", "1a", "sda "])
def test_a_feature_set_has_a_plain_name(name):
    with pytest.raises(SettingsError, match="letters, digits and underscores"):
        layout.view_name(name)


def test_slots_are_views_of_their_own():
    names = [layout.view_name("sda", slot) for slot in (1, 2, 3)]
    assert names == ["sda_item_embeddings", "sda_item_embeddings_2", "sda_item_embeddings_3"]
