"""The dotted path that feature_store.yaml files may have; the class lives in `feast_plugins.engine`."""

from sda_features.feast_plugins.engine import VectorEngine, VectorEngineConfig

__all__ = ["VectorEngine", "VectorEngineConfig"]
