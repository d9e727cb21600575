"""`verify` on a real repo: all equal, then each kind of difference in turn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from sda_features.demo.catalogue import make_catalogue
from sda_features.errors import ParityError
from sda_features.feature_store.online_rows import online_view
from sda_features.feature_store.repo import open_feature_set
from sda_features.offline.location import parquet_names
from sda_features.offline.parts import newest_batches
from sda_features.workflows import MaterializeResult, materialize, verify
from sda_features.workflows.verify import _check_matrices
from tests.shop import catalog, run, tiny_encoder

ITEMS = 30


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, new_repo: Callable[..., Path]) -> Path:
    """A folder with items.parquet and a repo whose feature set `vanilla` holds its vectors."""
    folder = tmp_path_factory.mktemp("verify")
    make_catalogue(ITEMS).write(folder / "items.parquet")
    new_repo(folder / "repo", feature_sets=["vanilla"], slots=1)
    write(folder)
    return folder


def write(shop: Path, **options: Any) -> MaterializeResult:
    load = tiny_encoder(shop / "model")
    return materialize(
        shop / "repo", "vanilla", catalog(shop / "items.parquet"), load, progress=False, **options
    )


def check(shop: Path, items: Path | None = None, sample: int | None = None):  # type: ignore[no-untyped-def]
    settings = catalog(items or shop / "items.parquet")
    return verify(shop / "repo", "vanilla", settings, sample=sample, progress=False)


def test_what_was_materialized_is_equal_everywhere(shop):
    found = check(shop)
    assert (found.items, found.online) == (ITEMS, True)
    assert found.vectors == 2 * ITEMS - 3  # one text is empty, one picture broken, one missing
    assert check(shop, sample=5).vectors in range(7, 11)
    options = ("--repo", shop / "repo", "--feature-set", "vanilla", "--max-bad-rows", 1)
    shown = run("verify", shop / "items.parquet", *options)
    assert f"catalogue  {ITEMS} items are stored as they are, nothing else is" in shown
    assert f"vectors    {found.vectors} are the same in the parquet parts, Redis and the trainers" in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("title", "row 8 of the catalogue, has changed since it was encoded"),
        ("fewer", "is stored, but not in the catalogue .1 such items"),
        ("more", "Item 'new' is in the catalogue, row 33, but not stored"),
    ],
)
def test_another_catalogue_is_found(shop, tmp_path, change, message):
    rows = pq.read_table(shop / "items.parquet").to_pylist()
    if change == "title":
        rows[7]["title"] = "changed"
    elif change == "fewer":
        del rows[3]
    else:
        rows.append({**rows[3], "item_id": "new"})
    path = tmp_path / "items.parquet"
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(shop / "items.parquet")), path)
    with pytest.raises(ParityError, match=message):
        check(shop, path)


@pytest.mark.parametrize("name", ["text_embedding", "adapter_version", "event_timestamp"])
@pytest.mark.parametrize("value", [b"\x08\x01", None])
def test_other_bytes_in_redis_are_found(shop, redis_server, name, value):
    opened = open_feature_set(shop / "repo", "vanilla")
    view = online_view(opened)
    item_id = next(newest_batches(opened.folder))["item_id"][12].as_py()
    (key,) = view.keys([item_id])
    field = view.time_field if name == "event_timestamp" else view.fields[view.features.index(name)]
    with redis.Redis(*redis_server) as server:
        before = server.hget(key, field)  # type: ignore[arg-type]
        if value is None:
            server.hdel(key, field)  # type: ignore[arg-type]
        else:
            server.hset(key, field, value)  # type: ignore[arg-type]
        try:
            shown = "missing" if value is None else "2 bytes 08 01"
            with pytest.raises(ParityError, match=f"{item_id!r}: {name} in the online store is {shown}"):
                check(shop)
        finally:
            server.hset(key, field, before)  # type: ignore[arg-type]
    check(shop)


def test_flipped_bytes_are_found_and_repaired(shop):
    """A byte in the middle of a file: found by its checksum, and encoded again, offline and online."""
    opened = open_feature_set(shop / "repo", "vanilla")
    (name,) = parquet_names(opened.folder)
    path = Path(opened.folder, name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ParityError, match=f"1 files .* damaged, such as {name} .*: {ITEMS} rows.* and --repair"
    ):
        check(shop)
    done = write(shop, repair=True)
    assert (done.encoded, done.unchanged) == (ITEMS, 0)
    assert check(shop).items == ITEMS
    assert write(shop, repair=True).encoded == 0


def test_a_named_item_is_encoded_again(shop, redis_server):
    opened = open_feature_set(shop / "repo", "vanilla")
    item_id = next(newest_batches(opened.folder))["item_id"][5].as_py()
    view = online_view(opened)
    with redis.Redis(*redis_server) as server:
        server.hset(view.keys([item_id])[0], view.fields[0], b"\x08\x01")  # type: ignore[arg-type]
    with pytest.raises(ParityError, match=f"materialize` with the same options and --again {item_id}"):
        check(shop)
    assert write(shop, again=[item_id]).encoded == 1
    assert check(shop).items == ITEMS


def test_one_bit_of_the_trainers_matrix_is_found(shop):
    opened = open_feature_set(shop / "repo", "vanilla")
    (rows,) = pa.Table.from_batches(newest_batches(opened.folder)).combine_chunks().to_batches()
    ids = rows["item_id"].to_pylist()
    matrices = {
        name: np.array([vector or [0.0] * 64 for vector in rows[f"{name}_embedding"].to_pylist()], np.float32)
        for name in ("text", "image")
    }
    assert _check_matrices(rows, matrices) == 2 * ITEMS - 3
    matrices["image"].view(np.uint32)[5, 9] ^= 1
    with pytest.raises(
        ParityError, match=f"{ids[5]!r}: image_embedding in the parquet parts has .* position 9"
    ):
        _check_matrices(rows, matrices)
