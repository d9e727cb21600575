"""`load_vectors` through the stock offline store and through ours: the same matrices, packed vectors too."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sda_features.errors import FeatureMismatchError, FeatureStoreError
from sda_features.feature_store.matrices import load_vectors
from sda_features.feature_store.repo import quiet_feast
from sda_features.serving import codec, layout
from tests.contracts.stores import NOON
from tests.feast_repo import Rows

OURS = "sda_features.feast_plugins.offline_store.VectorFileOfflineStore"
IDS = [f"item {row}" for row in range(23)]


@pytest.fixture(params=["file", OURS], ids=["stock", "ours"])
def repo(request, make_repo):
    repo = make_repo(server=None)
    with (repo / "feature_store.yaml").open("a") as settings:
        settings.write(f"offline_store: {{type: {request.param}}}\n")
    return repo


def write_plain(repo, table):
    """A folder of parquet files without a log."""
    (repo / "data/sda").mkdir(parents=True, exist_ok=True)
    pq.write_table(table, repo / "data/sda" / "theirs.parquet")


def test_the_newest_vectors_of_several_parts(repo, later):
    old, new = Rows.random(IDS, seed=1), Rows.random(IDS[5:], seed=2)
    old.write(repo / "data/sda")
    new.write(repo / "data/sda", time=later(1), version="v2")
    new.assert_equal(load_vectors(repo, "sda", IDS[5:]))
    old.assert_equal(load_vectors(repo, "sda", IDS, end=NOON))
    found = load_vectors(repo, "sda", [*IDS[::-1], "nobody", IDS[7], IDS[7]])
    assert found.versions == ("v1", "v2")
    assert found.text[:18].tobytes() == new.text[::-1].tobytes()
    assert found.text[18:23].tobytes() == old.text[4::-1].tobytes()
    assert found.text[24].tobytes() == found.text[25].tobytes() == new.text[2].tobytes()
    assert not found.text_found[23]
    assert not found.text[23].any()


def test_matrices_in_files(repo, tmp_path):
    rows = Rows.random(IDS)
    rows.write(repo / "data/sda")
    found = load_vectors(repo, "sda", IDS, folder=tmp_path)
    rows.assert_equal(found)
    assert isinstance(found.text, np.memmap)
    assert np.load(tmp_path / "image.npy").tobytes() == rows.image.tobytes()
    with pytest.raises(FeatureStoreError, match="distinct ids"):
        load_vectors(repo, "sda", [IDS[0], IDS[0]], folder=tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_packed_vectors_are_unpacked(repo, dtype):
    from feast import FeatureStore, FeatureView, Field
    from feast.types import Bytes, String

    rows = Rows.random(IDS, dim=6)
    matrices = {layout.TEXT: (rows.text, rows.text_found), layout.IMAGE: (rows.image, rows.image_found)}
    table = pq.read_table(repo / "other" / rows.write(repo / "other"))
    expected = {}
    for name, (matrix, found) in matrices.items():
        small = np.clip(matrix, -1, 1)
        payloads = codec.pack_vectors(small, dtype)
        column = pa.array(
            [payload if there else None for payload, there in zip(payloads, found, strict=True)]
        )
        table = table.set_column(table.column_names.index(name), name, column)
        expected[name] = np.where(found[:, None], codec.unpack_vectors(payloads, 6), 0)
    write_plain(repo, table)
    with quiet_feast():
        store = FeatureStore(repo_path=str(repo))
        view = store.get_feature_view("sda_item_embeddings")
        schema = [
            Field(name="item_id", dtype=String),
            *(Field(name=name, dtype=Bytes) for name in matrices),
            Field(name=layout.VERSION, dtype=String),
        ]
        item = store.get_entity("item")
        store.apply(
            [
                FeatureView(
                    name=view.name, entities=[item], source=view.batch_source, ttl=view.ttl, schema=schema
                )
            ]
        )
    found = load_vectors(repo, "sda", IDS)
    assert found.text_found.tolist() == rows.text_found.tolist()
    np.testing.assert_array_equal(found.text, expected[layout.TEXT])
    np.testing.assert_array_equal(found.image, expected[layout.IMAGE])


def test_vectors_of_several_dimensions_are_refused(repo, later):
    rows = Rows.random(IDS, dim=4)
    parts = [
        repo / "other" / rows.write(repo / "other"),
        repo / "wide" / Rows.random(["wide"], dim=5).write(repo / "wide", time=later(1)),
    ]
    write_plain(repo, pa.concat_tables(map(pq.read_table, parts)))
    with pytest.raises(FeatureMismatchError, match="one dimension in text_embedding, got lengths 4 to 5"):
        load_vectors(repo, "sda", IDS)
