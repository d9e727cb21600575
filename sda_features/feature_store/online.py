"""The dotted path that feature_store.yaml files may have; the class lives in `feast_plugins.online_store`."""

from sda_features.feast_plugins.online_store import VectorRedisOnlineStore, VectorRedisOnlineStoreConfig

__all__ = ["VectorRedisOnlineStore", "VectorRedisOnlineStoreConfig"]
