"""`evaluate-vectors` from files to its table."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from sda_features.cli.main import cli
from tests.workflows.conftest import ITEMS


def run(shop, *arguments):
    features = f"{shop}/half.parquet,{shop}/full.parquet:text,{shop}/full.parquet+{shop}/half.parquet"
    command = ["evaluate-vectors", f"{shop}/log.parquet", "--features", features]
    return CliRunner().invoke(cli, [*command, *arguments])


def test_the_command_measures_compares_and_writes(shop, tmp_path):
    done = run(shop, "--output", str(tmp_path / "found.json"))
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "found.json").read_text())
    labels = ["popularity", "half", "full-text", "full+half"]
    assert list(found["metrics"]) == labels
    assert {row["against"] for row in found["differences"]} == set(labels[:3])
    for name in ("recall@20/next/all", "ndcg@10/full/all"):
        assert f"{found['metrics']['full+half'][name]:.4f}" in done.output
        assert found["users"][name] > 10
    assert found["vectors"]["full+half"]["features"] == f"{shop}/full.parquet+{shop}/half.parquet"
    assert json.loads(run(shop, "--json").stdout)["metrics"] == found["metrics"]


def test_other_products_alone(shop, tmp_path):
    ids = [f"i{item:02}" for item in range(ITEMS)]
    products = [f"p{item // 4}" for item in range(ITEMS)]
    catalogue = pa.table({"item_id": [*ids, "new"], "product": [*products, None]})
    pq.write_table(catalogue, tmp_path / "items.parquet")
    options = ["--catalog", str(tmp_path / "items.parquet"), "--json"]
    every = json.loads(run(shop, *options).stdout)
    others = json.loads(run(shop, *options, "--product-column", "product").stdout)
    assert every["data"]["items"] == ITEMS + 1
    assert 0 < others["users"]["hit@10/full/all"] < every["users"]["hit@10/full/all"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--features", "id"], "no vectors to evaluate"),
        (["--product-column", "product"], "name the catalogue with --catalog"),
        (["--catalog", "log.parquet", "--product-column", "colour"], "no column 'colour'"),
        (["--features", "full.parquet:sound"], "has a vector of its sound in"),
        (["--features", "full.parquet,full.parquet"], None),
    ],
)
def test_mistakes_are_named(shop, monkeypatch, arguments, message):
    monkeypatch.chdir(shop)
    command = ["evaluate-vectors", "log.parquet", "--features", "full.parquet"]
    done = CliRunner().invoke(cli, [*command, *arguments])
    assert (done.exit_code == 0) == (message is None)
    assert message is None or message in str(done.exception)
