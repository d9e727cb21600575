"""What tests of jobs do with tables and stores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sda_features.serving import EmbeddingClient, Embeddings


def with_column(table: pa.Table, name: str, values: Sequence[Any]) -> pa.Table:
    """The table with other values in a column."""
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.field(name), pa.array(values, table.field(name).type))


def served(repo: Path, feature_set: str, ids: Sequence[str], version: str | None = None) -> Embeddings:
    """What a service reads."""
    with EmbeddingClient.from_repo(repo, feature_set) as client:
        return client.get(ids, version)


def assert_alike(got: Any, want: Any) -> None:
    """The same items have vectors; these may be rounded differently, as in another batch."""
    for modality in ("text", "image"):
        found = f"{modality}_found"
        assert getattr(got, found).tolist() == getattr(want, found).tolist()
        np.testing.assert_allclose(getattr(got, modality), getattr(want, modality), rtol=0, atol=1e-5)
