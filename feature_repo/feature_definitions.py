"""Item vectors of the adapted model (`sda`) and of the model before adaptation (`vanilla`).

Each feature set has two slots, so that a new version can be written beside the one that is served.
"""

from sda_features.feature_store.definitions import embedding_source, embedding_view, item_entity

item = item_entity()

sda_source = embedding_source("sda", "data/item_embeddings/sda", item)
sda_item_embeddings = embedding_view("sda", sda_source, item)
sda_source_2 = embedding_source("sda", "data/item_embeddings/sda_2", item, slot=2)
sda_item_embeddings_2 = embedding_view("sda", sda_source_2, item, slot=2)

vanilla_source = embedding_source("vanilla", "data/item_embeddings/vanilla", item)
vanilla_item_embeddings = embedding_view("vanilla", vanilla_source, item)
vanilla_source_2 = embedding_source("vanilla", "data/item_embeddings/vanilla_2", item, slot=2)
vanilla_item_embeddings_2 = embedding_view("vanilla", vanilla_source_2, item, slot=2)
