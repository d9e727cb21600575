"""The dotted path that feature_store.yaml files may have; the class lives in `feast_plugins.offline_store`."""

from sda_features.feast_plugins.offline_store import VectorFileOfflineStore, VectorFileOfflineStoreConfig

__all__ = ["VectorFileOfflineStore", "VectorFileOfflineStoreConfig"]
