"""What a repo's definition file imports: the item entity, the parquet source and the feature view.

    item = item_entity()
    sda_source = embedding_source("sda", "data/item_embeddings/sda", item)
    sda_item_embeddings = embedding_view("sda", sda_source, item)

A feature set that keeps two versions side by side has a second view, with `slot=2` and a folder of
its own. Feast registers an object only if it is a module-level name of some file of the repo: not inside a
list, and an entity of another file only if it is imported by name.
"""

from __future__ import annotations

from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource
from feast.data_source import DataSource
from feast.types import Array, Bytes, Float32, Int32, String, from_value_type
from feast.value_type import ValueType

from sda_features.errors import FeatureStoreError
from sda_features.offline.schema import EVENT_TIMESTAMP, ITEM_ID, STORE_DTYPE_TAG
from sda_features.serving.codec import StoreDtype
from sda_features.serving.layout import ID_TYPES, IMAGE, TEXT, VERSION, IdType, view_name


def item_entity(join_key: str = ITEM_ID, *, name: str = "item", id_type: IdType = "string") -> Entity:
    """The entity of items, for a repo that has none.

    Args:
        join_key: name under which a request gives the id.
        name: name of the entity.
        id_type: type of the ids in Feast.
    """
    return Entity(
        name=name, join_keys=[join_key], value_type=ValueType[id_type.upper()], description="An item."
    )


def embedding_source(feature_set: str, path: str, entity: Entity, *, slot: int = 1) -> FileSource:
    """The folder of parquet parts that holds one slot of a feature set.

    Args:
        feature_set: name of the feature set.
        path: folder, relative to the repo or absolute; no other slot has it.
        entity: entity of items; its join key names the id column, which the parts call `item_id`.
        slot: number of the slot, from 1.
    """
    mapping = {} if entity.join_key == ITEM_ID else {ITEM_ID: entity.join_key}
    return FileSource(
        name=f"{view_name(feature_set, slot)}_source",
        path=path,
        timestamp_field=EVENT_TIMESTAMP,
        field_mapping=mapping,
        description=f"Item vectors of the feature set {feature_set}.",
    )


def embedding_view(
    feature_set: str,
    source: DataSource,
    entity: Entity,
    *,
    slot: int = 1,
    store_dtype: StoreDtype = "float32",
    online: bool = True,
) -> FeatureView:
    """The feature view of one slot of a feature set: text and image vector and adapter version.

    It is named `{feature_set}_item_embeddings`, from the second slot on with `_{slot}` behind.
    Vectors do not expire: an old vector beats none.

    Args:
        feature_set: name of the feature set.
        source: where its rows are, see `embedding_source`.
        entity: entity of items, with ids of type STRING, INT32, INT64, or of no declared type
            (taken as STRING).
        slot: number of the slot, from 1.
        store_dtype: float32 vectors are Array(Float32), which every Feast client understands;
            float16 and int8 ones are Bytes (serving/codec.py), a half and a quarter of the size.
        online: whether Feast's own `feast materialize` writes this view, too. False where that cannot
            read the source; `sda-features materialize` writes it all the same.

    Raises:
        FeatureStoreError: the entity's ids have another type.
    """
    vector = Array(Float32) if store_dtype == "float32" else Bytes
    value_type = ValueType.STRING if entity.value_type is ValueType.UNKNOWN else entity.value_type
    if value_type.name not in ID_TYPES:
        raise FeatureStoreError(
            f"Expected the entity {entity.name!r} to have value_type {', '.join(ID_TYPES)}, "
            f"got {value_type.name}. Define an item entity of one of these types."
        )
    return FeatureView(
        name=view_name(feature_set, slot),
        entities=[entity],
        source=source,
        ttl=timedelta(0),
        online=online,
        schema=[
            Field(name=entity.join_key, dtype=from_value_type(value_type)),
            Field(name=TEXT, dtype=vector, description="Vector of the item's text."),
            Field(name=IMAGE, dtype=vector, description="Vector of the item's picture."),
            Field(name=VERSION, dtype=String, description="Version of the checkpoint that made the vectors."),
        ],
        description=f"Item vectors of the feature set {feature_set}.",
        tags={"feature_set": feature_set, "slot": str(slot), STORE_DTYPE_TAG: store_dtype},
    )


def codes_view(feature_set: str, path: str, entity: Entity) -> FeatureView:
    """The feature view `{feature_set}_item_codes` of the codes.parquet that `sda-features index --codes` wrote.

    Args:
        feature_set: name of the feature set.
        path: the file.
        entity: entity of items, with ids of type STRING or of no declared type.
    """
    return FeatureView(
        name=f"{feature_set}_item_codes",
        entities=[entity],
        source=FileSource(name=f"{feature_set}_item_codes", path=path, timestamp_field=EVENT_TIMESTAMP),
        ttl=timedelta(0),
        schema=[
            Field(name=entity.join_key, dtype=String),
            Field(name="codes", dtype=Array(Int32), description="Residual k-means codes, coarse to fine."),
        ],
        description=f"Codes of the items of the feature set {feature_set}.",
    )
