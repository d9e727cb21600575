"""The example recommender: built as a wheel, found by its name, held to the contract, trained and loaded."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from examples.recommender.gru4rec import GRU4Rec
from sda_features.cli.main import cli
from sda_features.config import RecommenderSettings
from sda_features.recommenders.registry import find_recommender
from sda_features.recommenders.saved import load_run
from tests.contracts.recommender import RecommenderContract, small_log
from tests.workflows.conftest import QUICK, shop

__all__ = ["shop"]  # a fixture
EXAMPLE = Path(__file__).parents[2] / "examples/recommender"
BUILD = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"


class TestContract(RecommenderContract):
    recommender = GRU4Rec


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("example") / "recommender"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    built = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=source, capture_output=True, text=True, check=True
    )
    return source / built.stdout.splitlines()[-1]


def test_the_installed_package_trains_by_its_name_and_its_run_loads(shop, wheel, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(wheel)
    found = find_recommender("gru4rec")
    assert found.__module__ == "gru4rec"
    assert str(wheel) in sys.modules["gru4rec"].__file__
    options = ["--features", str(shop / "full.parquet"), *QUICK, "-o", str(tmp_path / "run")]
    done = CliRunner().invoke(cli, ["train", str(shop / "log.parquet"), "--model", "gru4rec", *options])
    assert done.exit_code == 0, (done.output, done.exception)
    run = load_run(tmp_path / "run")
    assert type(run.model) is found
    assert np.ptp(run.score(run.item_ids[:3], run.item_ids).scores) > 0


def test_states_follow_the_equations_of_the_paper():
    """Item by item, with torch's placing of the reset gate."""
    settings = RecommenderSettings(hidden_dim=5, max_length=9)
    torch.manual_seed(0)
    model = GRU4Rec.build(small_log(), settings, None).eval()
    items = torch.tensor([3, 1, 7, 7, 2])
    w_r, w_z, w_n = model.gru.weight_ih_l0.chunk(3)
    u_r, u_z, u_n = model.gru.weight_hh_l0.chunk(3)
    state = torch.zeros(5)
    for x in model.items(items) * 5**0.5:
        reset = torch.sigmoid(w_r @ x + u_r @ state)
        keep = torch.sigmoid(w_z @ x + u_z @ state)
        state = (1 - keep) * torch.tanh(w_n @ x + reset * (u_n @ state)) + keep * state
    assert state.abs().max() > 1e-3
    padded = torch.cat([torch.zeros(4, dtype=torch.int64), items])[None]
    torch.testing.assert_close(model.user_states(torch.tensor([0]), padded)[0], state)
    torch.testing.assert_close(model.state_after(model.items(items)), state)
    assert model.state_after(torch.zeros(0, 5)).tolist() == [0] * 5


def test_padding_stays_zero_in_training():
    torch.manual_seed(0)
    model = GRU4Rec.build(small_log(), RecommenderContract.settings, None)
    before = model.item_table().detach().clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    padded = 0
    for batch in model.batches(small_log(), np.random.default_rng(0)):
        padded += int((batch["histories"] == 0).sum())
        model.loss(batch).backward()
        optimizer.step()
    assert padded > 10
    table = model.item_table().detach()
    assert table[0].abs().max() == 0
    assert (table[1:] - before[1:]).abs().max() > 0.1
