"""Applying a Feast repo in this process: `feast apply` without the start of another Python."""

from __future__ import annotations

import runpy
from pathlib import Path

from sda_features.feature_store.init import FILE_NAME
from sda_features.feature_store.repo import quiet_feast


def redis_config(project: str, server: tuple[str, int], store: str = "redis") -> str:
    """A feature_store.yaml whose online store is the Redis server at (host, port)."""
    return (
        f"project: {project}\nprovider: local\nregistry: data/registry.db\nonline_store:\n  type: {store}\n"
        f"  connection_string: {server[0]}:{server[1]}\nentity_key_serialization_version: 3\n"
    )


def apply(repo: Path) -> None:
    """Register what `sda-features init` wrote into a repo."""
    with quiet_feast():
        from feast import Entity, FeatureStore, FeatureView

        definitions = runpy.run_path(str(repo / FILE_NAME)).values()
        objects = [value for value in definitions if isinstance(value, Entity | FeatureView)]
        FeatureStore(repo_path=str(repo)).apply(objects)
