"""What cases of faults have in common: tiny models, a checkpoint, and the command line as a user sees it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sda_features.cli.main import main
from sda_features.config import AdaptSettings
from sda_features.lvlm.backbone import Backbone
from sda_features.lvlm.checkpoint import save_checkpoint
from sda_features.lvlm.encoder import PromptEncoder
from sda_features.lvlm.reduction import fit_rotation
from tests.lvlm.conftest import tiny_models
from tests.lvlm.test_adapt import write_catalogue
from tests.shop import on_cpu

__all__ = ["tiny_models"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory):
    return write_catalogue(tmp_path_factory.mktemp("catalogue") / "items.parquet")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, tiny_models):
    folder = tmp_path_factory.mktemp("trained") / "checkpoint"
    backbone = on_cpu(tiny_models["qwen2_5_vl"])
    settings = AdaptSettings.parse(catalog={"path": "items.parquet"}, backbone=backbone)
    encoder = PromptEncoder(Backbone(settings.backbone), settings.adapter, settings.projection)
    rotation, _ = fit_rotation(np.random.default_rng(0).normal(size=(80, 64)).astype(np.float32))
    save_checkpoint(folder, encoder, settings, {}, rotation)
    return folder


@pytest.fixture
def copied(checkpoint, tmp_path):
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def model(tiny_models, tmp_path):
    return Path(shutil.copytree(tiny_models["qwen2_5_vl"], tmp_path / "model"))


@pytest.fixture
def fails(capsys):
    """Run the command line, which must end in one message and no traceback; returns the message."""

    def run(*arguments, status=1):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, errors = capsys.readouterr()
        assert ended.value.code == status, errors
        assert "Traceback" not in out + errors
        assert "not foreseen" not in errors, errors
        if status == 1:
            assert errors.count("error: ") == 1
        return errors

    return run


@pytest.fixture
def script():
    """Run a module of these tests in a process of its own; returns the JSON object that it prints last."""

    def run(module, *arguments, prefix=()):
        command = [*prefix, sys.executable, "-m", module, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run
