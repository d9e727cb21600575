"""Published extractors through the commands: CLIP's vectors in Feast and Redis, as a feature set of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from transformers import AutoTokenizer

from sda_features.catalog.prompts import caption
from sda_features.catalog.rows import Catalog, Item
from sda_features.config import PromptSettings
from sda_features.demo.catalogue import make_catalogue
from sda_features.demo.purchases import make_interactions
from sda_features.errors import BackboneError, SettingsError
from sda_features.feature_store.matrices import load_vectors
from tests.lvlm.dual_models import TEXT_LIMIT, build_dual_model, published_vectors
from tests.shop import catalog, run
from tests.workflows.conftest import QUICK
from tests.workflows.stores import served, with_column

ITEMS = 40


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, new_repo: Callable[..., Path]) -> Path:
    """A folder with items.parquet, log.parquet, clip/, siglip/ and an applied Feast repo in repo/."""
    folder = tmp_path_factory.mktemp("baselines")
    catalogue = make_catalogue(ITEMS)
    catalogue.write(folder / "items.parquet")
    pq.write_table(make_interactions(catalogue, users=60), folder / "log.parquet")
    for kind in ("clip", "siglip"):
        build_dual_model(folder / kind, kind)
    new_repo(folder / "repo", feature_sets=["sda", "vanilla", "clip"])
    return folder


def materialize(shop: Path, model: str, *options: str, items: str = "items.parquet") -> str:
    return run(
        *("materialize", shop / items, "--model", shop / model, "--repo", shop / "repo"),
        *("--dtype", "float32", "--device", "cpu", "--max-bad-rows", "1", *options),
    )


def items_of(path: Path) -> Iterator[Item]:
    return Catalog(catalog(path)).items()


def expected_vectors(shop: Path, model: str) -> list[dict[str, np.ndarray]]:
    """Item id -> published text vector, and the same for pictures."""
    items = list(items_of(shop / "items.parquet"))
    texts = [caption(item.fields, PromptSettings()) for item in items]
    pictures = [item.image for item in items]
    blank = Image.new("RGB", (40, 40))
    made = published_vectors(
        shop / model, [text or "" for text in texts], [picture or blank for picture in pictures]
    )
    return [
        {item.item_id: row for item, row, value in zip(items, rows, values, strict=True) if value is not None}
        for rows, values in zip(made, (texts, pictures), strict=True)
    ]


def test_clip_goes_the_way_of_every_feature_set(shop, tmp_path):
    """init, materialize, verify, lookup, read, materialize a change, train."""
    repo = str(shop / "repo")
    first = materialize(shop, "clip", "--feature-set", "clip", "--shard-rows", "15")
    assert f"encoded    {ITEMS} items, 0 unchanged, 0 removed" in first
    tokenizer = AutoTokenizer.from_pretrained(shop / "clip")
    captions = [caption(item.fields, PromptSettings()) for item in items_of(shop / "items.parquet")]
    cut = sum(len(tokenizer(text)["input_ids"]) > TEXT_LIMIT["clip"] for text in captions if text)
    assert 0 < cut < ITEMS, "vacuous"
    assert f"texts      {cut} are longer than the model reads; their ends were left out" in first
    assert f"online     {ITEMS} items in clip_item_embeddings, version " in first
    of_clip = ("--feature-set", "clip")
    run("verify", shop / "items.parquet", "--repo", repo, *of_clip, "--max-bad-rows", "1")

    texts, pictures = expected_vectors(shop, "clip")
    assert min(len(texts), len(pictures)) < ITEMS, "vacuous: every row is good"
    ids = pq.read_table(shop / "items.parquet")["item_id"].unique().drop_null().to_pylist()
    for found in (served(shop / "repo", "clip", ids), load_vectors(shop / "repo", "clip", ids)):
        for matrix, is_found, expected in (
            (found.text, found.text_found, texts),
            (found.image, found.image_found, pictures),
        ):
            assert [ids[row] for row in np.flatnonzero(is_found)] == [i for i in ids if i in expected]
            for row, item_id in enumerate(ids):
                np.testing.assert_allclose(matrix[row], expected.get(item_id, 0), rtol=0, atol=1e-5)
    assert "text  found, dimension 24, norm 1.0000" in run("lookup", ids[0], "--repo", repo, *of_clip)

    table = pq.read_table(shop / "items.parquet")
    titles = table["title"].to_pylist()
    titles[7] = "changed"
    pq.write_table(with_column(table, "title", titles), shop / "changed.parquet")
    again = json.loads(materialize(shop, "clip", "--feature-set", "clip", "--json", items="changed.parquet"))
    assert (again["encoded"], again["unchanged"]) == (1, ITEMS - 1)

    train = ("train", shop / "log.parquet", "--features", "clip", "--repo", repo)
    assert "clip" in run(*train, "-o", tmp_path / "run", *QUICK)


def test_another_extractor_is_another_version(shop):
    """Vectors of two models never serve together, though one feature set holds both."""
    clip = json.loads(materialize(shop, "clip", "--feature-set", "clip", "--json"))
    siglip = json.loads(materialize(shop, "siglip", "--feature-set", "clip", "--json"))
    assert siglip["version"] != clip["version"] == siglip["live"]
    assert siglip["view"] != clip["view"]
    assert 0 < siglip["texts_cut"] < ITEMS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Expected --feature-set for the vectors of .*: the default, vanilla, .* Nothing was written."),
        (["--feature-set", "clip", "--quantization", "nf4"], "is not quantised; got --quantization nf4"),
        (["--feature-set", "clip", "--dim", "8"], "--dim needs a --checkpoint"),
    ],
)
def test_what_does_not_fit_is_said(shop, options, message):
    with pytest.raises(SettingsError, match=message):
        materialize(shop, "clip", *options)
    assert {path.name for path in (shop / "repo").glob("data/item_embeddings/vanilla*/*.parquet")} == {
        "no-rows-yet.parquet"
    }


def test_adapt_refuses_such_a_model(shop, tmp_path):
    adapt = ("adapt", shop / "items.parquet", "--model", shop / "clip", "-o", tmp_path / "run")
    with pytest.raises(BackboneError, match="is a 'clip' model; expected one of qwen2_vl"):
        run(*adapt, "--max-bad-rows", 1)
