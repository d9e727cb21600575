"""Item vectors of the adapted model (`sda`) and of the model before adaptation (`vanilla`)."""

from sda_features.feature_store.definitions import embedding_source, embedding_view, item_entity

item = item_entity()

sda_source = embedding_source("sda", "data/item_embeddings/sda", item)
sda_item_embeddings = embedding_view("sda", sda_source, item)

vanilla_source = embedding_source("vanilla", "data/item_embeddings/vanilla", item)
vanilla_item_embeddings = embedding_view("vanilla", vanilla_source, item)
