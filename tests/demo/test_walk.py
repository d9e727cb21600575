"""The walk of `make demo` on a smaller shop: every step, the tables and the numbers."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest

from sda_features.demo import gains, walk
from tests.shop import run


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "make_catalogue", partial(walk.make_catalogue, 200))
    monkeypatch.setattr(walk, "make_interactions", partial(walk.make_interactions, users=400))
    monkeypatch.setattr(walk, "pretrain", partial(walk.pretrain, items=80, steps=2))
    monkeypatch.setattr(walk, "TRAIN", {**walk.TRAIN, "steps": 2, "batch_size": 16})
    monkeypatch.setattr(gains, "RECOMMENDER", {**gains.RECOMMENDER, "epochs": 1})
    said = run("demo", "--output", tmp_path / "demo")
    steps = [word for _, word in re.findall(r"([1-7])\. (\w+)", re.sub(" +", " ", said))]
    once = ["generate", "adapt", "feast", "materialize", "materialize", "lookup", "evaluate"]
    assert steps == [*once, *["train"] * len(("id", *gains.VECTORS))]
    found = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert set(found["scores"][gains.ALONE]) >= set(gains.VECTORS)
    assert set(found["scores"][gains.TRAINED]) == {"id", *gains.VECTORS}
    for metric in gains.METRICS.values():
        value = found["scores"][gains.TRAINED][gains.OURS][metric]
        assert value is None or 0 <= value <= 1
    for features in ("id", *gains.VECTORS):
        assert f"| {features} " in said
