"""`materialize` where the rows are not a local folder of parts: all through Feast's own offline store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sda_features.demo.catalogue import make_catalogue
from sda_features.errors import FeatureStoreError
from sda_features.feature_store.init import FILE_NAME
from sda_features.feature_store.matrices import load_vectors
from sda_features.offline.schema import SCHEMA
from sda_features.serving import EmbeddingClient
from sda_features.workflows import materialize
from tests.feast_repo import apply
from tests.shop import catalog, tiny_encoder


def test_rows_go_through_feast_to_its_own_offline_store(
    tmp_path: Path, new_repo: Callable[..., Path]
) -> None:
    """One parquet file, which Feast itself reads and writes: encode, change, remove, and bring back."""
    repo = new_repo(tmp_path / "repo", feature_sets=["sda"], slots=1)
    definitions = repo / FILE_NAME
    text = definitions.read_text()
    definitions.write_text(text.replace("data/item_embeddings/sda", "data/rows.parquet"))
    assert definitions.read_text() != text
    apply(repo)
    make_catalogue(20).write(tmp_path / "first.parquet")
    load = tiny_encoder(tmp_path / "model")

    def run(name: str) -> tuple[int, int, int]:
        items = catalog(tmp_path / f"{name}.parquet", max_bad_rows=0.5)
        done = materialize(repo, "sda", items, load, shard_rows=8, progress=False)
        return done.encoded, done.unchanged, done.removed

    with pytest.raises(FeatureStoreError, match="Feast cannot read the FileSource of sda_item_embeddings"):
        run("first")
    pq.write_table(SCHEMA.empty_table(), repo / "data/rows.parquet")
    assert run("first") == (20, 0, 0)

    table = pq.read_table(tmp_path / "first.parquet")
    ids = table["item_id"].to_pylist()[:20]
    titles = ["changed" if row == 3 else title for row, title in enumerate(table["title"].to_pylist())]
    changed = table.set_column(1, "title", pa.array(titles))
    pq.write_table(pa.concat_tables([changed.slice(0, 1), changed.slice(2)]), tmp_path / "second.parquet")
    with EmbeddingClient.from_repo(repo) as client:
        before = client.get(ids)
        assert run("second") == (1, 18, 1)
        after = client.get(ids)
        assert not after.text_found[1]
        assert not after.image_found[1]
        differs = (after.text != before.text).any(axis=1)
        assert np.flatnonzero(differs).tolist() == [1, 3]
        assert run("second") == (0, 19, 0)
        assert run("first") == (2, 18, 0)
        np.testing.assert_array_equal(client.get(ids).text, before.text)
    offline = load_vectors(repo, "sda", ids)
    np.testing.assert_array_equal(offline.text, before.text)
    rows = pq.read_table(repo / "data/rows.parquet")
    assert len(rows) == 20 + 1 + 1 + 2, "history is kept, as a warehouse keeps it"
