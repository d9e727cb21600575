"""Applying a Feast repo in this process: `feast apply` without the start of another Python."""

from __future__ import annotations

import runpy
from pathlib import Path

from sda_features.feature_store.init import FILE_NAME
from sda_features.feature_store.repo import quiet_feast


def apply(repo: Path) -> None:
    """Register what `sda-features init` wrote into a repo."""
    with quiet_feast():
        from feast import Entity, FeatureStore, FeatureView

        definitions = runpy.run_path(str(repo / FILE_NAME)).values()
        objects = [value for value in definitions if isinstance(value, Entity | FeatureView)]
        FeatureStore(repo_path=str(repo)).apply(objects)
