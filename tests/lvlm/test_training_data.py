from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sda_features.catalog.rows import Catalog
from sda_features.lvlm.finetune import warmup_cosine
from sda_features.lvlm.training_data import ROWS_A_BATCH, TrainingPairs, step_indices, write_pairs
from tests.lvlm.conftest import PROMPTS, picture, png
from tests.lvlm.test_adapt import write_rows
from tests.shop import catalog


@given(items=st.integers(2, 60), batch=st.integers(2, 70), seed=st.integers(0, 99), epoch=st.integers(0, 3))
def test_an_epoch_shows_each_item_at_most_once_and_leaves_out_less_than_a_batch(
    items: int, batch: int, seed: int, epoch: int
) -> None:
    steps = items // min(batch, items)
    shown = np.concatenate([step_indices(items, batch, seed, epoch * steps + step) for step in range(steps)])
    assert len(np.unique(shown)) == len(shown)
    assert items - len(shown) < min(batch, items)
    assert set(shown) <= set(range(items))


def test_epochs_and_seeds_differ_and_repeat_exactly() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        return step_indices(50, 50, seed, number).tolist()

    assert epoch(0, 0) == epoch(0, 0)
    assert epoch(0, 0) != epoch(0, 1)
    assert epoch(0, 0) != epoch(1, 0)


def test_learning_rate_warms_up_then_falls_to_zero() -> None:
    factors = [warmup_cosine(step, 10, 100) for step in range(101)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[10] == 1
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[100] == pytest.approx(0)


def test_pairs_come_back_from_disk_by_position(tmp_path: Path) -> None:
    """More pairs than a record batch holds, with rows in between that are no pairs."""
    count, image = ROWS_A_BATCH + 44, png(picture(0, (8, 8)))
    rows = [{"item_id": f"i{n}", "title": f"title {n}", "image": image} for n in range(count)]
    rows[5]["title"] = None
    path = write_rows(tmp_path / "items.parquet", rows)
    write_pairs(Catalog(catalog(path)), PROMPTS, tmp_path / "pairs.arrow", progress=False)
    pairs = TrainingPairs(tmp_path / "pairs.arrow")
    assert len(pairs) == count - 1
    positions = [0, 4, 5, ROWS_A_BATCH - 1, ROWS_A_BATCH, count - 2]
    numbers = [0, 4, 6, ROWS_A_BATCH, ROWS_A_BATCH + 1, count - 1]
    assert [pairs._row(position)["item_id"] for position in positions] == [f"i{n}" for n in numbers]
    assert pairs._row(0)["prompt"].endswith("title is title 0")
