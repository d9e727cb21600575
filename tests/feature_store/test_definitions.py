"""The factories that a repo's definition file imports."""

import pytest

from sda_features.errors import FeatureStoreError
from sda_features.feature_store.repo import quiet_feast

with quiet_feast():
    from feast import Entity, ValueType
    from feast.types import Array, Float32, Int32, Int64, String

    from sda_features.feature_store.definitions import embedding_source, embedding_view, item_entity


@pytest.mark.parametrize(
    ("value_type", "dtype"),
    [
        (ValueType.STRING, String),
        (ValueType.INT32, Int32),
        (ValueType.INT64, Int64),
        (ValueType.UNKNOWN, String),
    ],
)
def test_a_view_honours_the_entitys_type(value_type, dtype):
    entity = Entity(name="goods", join_keys=["sku"], value_type=value_type)
    view = embedding_view("sda", embedding_source("sda", "data", entity), entity)
    assert [(field.name, field.dtype) for field in view.entity_columns] == [("sku", dtype)]
    assert [(field.name, field.dtype) for field in view.features] == [
        ("text_embedding", Array(Float32)),
        ("image_embedding", Array(Float32)),
        ("adapter_version", String),
    ]
    assert (view.name, view.entities) == ("sda_item_embeddings", ["goods"])
    assert view.batch_source.field_mapping == {"item_id": "sku"}


def test_a_slot_is_a_view_of_its_own():
    item = item_entity()
    view = embedding_view("sda", embedding_source("sda", "data/2", item, slot=2), item, slot=2)
    assert (view.name, view.batch_source.name) == ("sda_item_embeddings_2", "sda_item_embeddings_2_source")
    assert view.tags == {"feature_set": "sda", "slot": "2", "store_dtype": "float32"}


def test_another_type_is_refused():
    entity = Entity(name="goods", join_keys=["item_id"], value_type=ValueType.DOUBLE)
    with pytest.raises(
        FeatureStoreError, match="'goods' to have value_type STRING, INT32, INT64, got DOUBLE"
    ):
        embedding_view("sda", embedding_source("sda", "data", entity), entity)


@pytest.mark.parametrize(
    ("id_type", "value_type"), [("string", ValueType.STRING), ("int64", ValueType.INT64)]
)
def test_the_item_entity(id_type, value_type):
    entity = item_entity("sku", id_type=id_type)
    assert (entity.name, entity.join_key, entity.value_type) == ("item", "sku", value_type)
