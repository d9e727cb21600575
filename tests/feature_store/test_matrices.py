"""`load_vectors` from a folder of ours, and from one file through the stock offline store and through ours."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sda_features.errors import FeatureMismatchError, FeatureStoreError
from sda_features.feature_store.init import FILE_NAME
from sda_features.feature_store.matrices import load_vectors
from sda_features.offline.parts import write_part
from sda_features.serving import codec
from tests.contracts.stores import OURS, STOCK
from tests.feast_repo import NOON, Rows, apply

IDS = [f"item {row}" for row in range(23)]


@pytest.fixture(params=[None, STOCK[1], OURS[1]], ids=["folder", "stock", "ours"])
def repo(request, make_repo):
    repo = make_repo(server=None)
    if request.param:
        definitions = repo / FILE_NAME
        definitions.write_text(definitions.read_text().replace('"data/sda"', '"data/sda.parquet"'))
        apply(repo)
        with (repo / "feature_store.yaml").open("a") as settings:
            settings.write(f"offline_store: {{type: {request.param}}}\n")
    return repo


def write(repo, *tables):
    """As parts of a folder, and as one file; a repo reads one of the two."""
    for table in tables:
        write_part(repo / "data/sda", table)
    pq.write_table(pa.concat_tables(tables), repo / "data/sda.parquet")


def write_plain(repo, table):
    """As `write`, a folder of parquet files without a log."""
    for name in ("sda/theirs.parquet", "sda.parquet"):
        pq.write_table(table, repo / "data" / name)


def test_the_newest_vectors_of_several_parts(repo, later):
    old, new = Rows.random(IDS, seed=1), Rows.random(IDS[5:], seed=2)
    write(repo, old.table(), new.table("v2", later(1)))
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
    write(repo, rows.table())
    found = load_vectors(repo, "sda", IDS, folder=tmp_path)
    rows.assert_equal(found)
    assert isinstance(found.text, np.memmap)
    assert np.load(tmp_path / "image.npy").tobytes() == rows.image.tobytes()
    with pytest.raises(FeatureStoreError, match="distinct ids"):
        load_vectors(repo, "sda", [IDS[0], IDS[0]], folder=tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_packed_vectors_are_unpacked(repo, dtype):
    rows = Rows.random(IDS, dim=6)
    rows = replace(rows, text=np.clip(rows.text, -1, 1), image=np.clip(rows.image, -1, 1))
    write_plain(repo, rows.table(store_dtype=dtype))
    found = load_vectors(repo, "sda", IDS)
    assert found.text_found.tolist() == rows.text_found.tolist()
    for matrix, packed in ((found.text, rows.text), (found.image, rows.image)):
        np.testing.assert_array_equal(matrix, codec.unpack_vectors(codec.pack_vectors(packed, dtype), 6))


def test_vectors_of_several_dimensions_are_refused(repo, later):
    tables = Rows.random(IDS, dim=4).table(), Rows.random(["wide"], dim=5).table(time=later(1))
    write_plain(repo, pa.concat_tables(tables))
    with pytest.raises(FeatureMismatchError, match="one dimension in text_embedding, got lengths 4 to 5"):
        load_vectors(repo, "sda", IDS)
