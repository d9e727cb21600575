"""Run folders of recommenders that are damaged, foreign or of another format, for all that reads them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sda_features.cli.main import main
from sda_features.config import EvaluationSettings, RecommenderSettings
from sda_features.errors import CheckpointError
from sda_features.evaluation.run_files import MANIFEST, RUN_FILES
from sda_features.logs.interactions import read_interactions
from sda_features.recommenders.saved import load_run
from sda_features.recommenders.training import train
from tests.hostile.damage import GIT_LFS, cut, damage, flip, replace_by_folder, replace_by_link, without

pytestmark = pytest.mark.fault

SETTINGS = RecommenderSettings(hidden_dim=8, max_length=6, epochs=1, threads=1, device="cpu")
PROTOCOL = EvaluationSettings(cutoff=3, negatives=5)
# Who reads a file: a service, `compare`, `evaluate` under another protocol.
READERS = {
    "ranks.npz": ["compare"],
    "model.safetensors": ["load"],
    "items.parquet": ["load", "again"],
    "scaling.safetensors": ["load"],
    "users.safetensors": ["again"],
    MANIFEST: ["load", "compare", "again", "evaluate"],
}


def of_another_run(path):
    shutil.copy(path.parents[1] / "b" / path.name, path)


FAULTS = {
    "missing": None,
    "empty": b"",
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "cut in the middle": cut,
    "first byte flipped": lambda path: flip(path, 0),
    "a byte flipped": lambda path: flip(path, 0.6),
    "last byte flipped": flip,
    "of another run": of_another_run,
    "a git-lfs pointer": GIT_LFS,
    "a folder": replace_by_folder,
    "a link to nowhere": lambda path: replace_by_link(path, "nowhere"),
}
MANIFESTS = {
    "a list": b"[]",
    "a number": b"1",
    "nothing in it": b"{}",
    "nested deeply": b"[" * 100_000,
    "Latin-1": '{"name": "\u00e4"}'.encode("latin-1"),
    "of a web page": b'{"name": "shop", "icons": [], "start_url": "/"}',
    "newer": {"format": 2},
    "format of words": {"format": "new"},
    "recommender a number": {"recommender": 7},
    "recommender unknown": {"recommender": None},
    "settings a list": {"settings": []},
    "cutoff missing": {"evaluation": {}},
    "cutoff zero": {"evaluation": {"cutoff": 0}},
    "cutoff of words": {"evaluation": {"cutoff": "ten"}},
    "no hash of the log": {"data": {}},
    "metrics a list": {"metrics": [1]},
    "metrics of words": {"metrics": {"hit@10/full/all": "high"}},
    "hashes a list": {"files": ["model.safetensors"]},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs `a` and `b` of two seeds, and their log."""
    folder = tmp_path_factory.mktemp("runs")
    random = np.random.default_rng(0)
    rows = [f"u{n % 15},i{random.integers(20)},{n}" for n in range(120)]
    (folder / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    log = read_interactions(folder / "log.csv")
    vectors = random.normal(size=(log.item_count + 1, 6)).astype(np.float32)
    vectors[0] = 0
    for seed, name in enumerate("ab"):
        settings = SETTINGS.model_copy(update={"seed": seed})
        train(log, settings, PROTOCOL, {"text": vectors * (seed + 1)}, progress=False).save(folder / name)
    return folder


@pytest.fixture
def damaged(runs, tmp_path):
    return Path(shutil.copytree(runs, tmp_path / "runs"))


@pytest.fixture
def reads(fails):
    """What a reader says of run `a`; it must fail."""

    def read(reader, folder):
        run = folder / "a"
        if reader == "load":
            with pytest.raises(CheckpointError) as error:
                load_run(run)
            return str(error.value)
        if reader == "compare":
            return fails("compare", run, folder / "b")
        again = ["--negatives", "4", "--interactions", folder / "log.csv"] if reader == "again" else []
        return fails("evaluate", run, *again)

    return read


def test_the_table_has_every_file_and_the_run_is_good(runs, capsys):
    assert READERS.keys() == RUN_FILES == {path.name for path in (runs / "a").iterdir()}
    load_run(runs / "a")
    main(["compare", str(runs / "a"), str(runs / "b")])
    capsys.readouterr()
    main(["evaluate", str(runs / "a"), "--negatives", "4", "--interactions", str(runs / "log.csv"), "--json"])
    assert json.loads(capsys.readouterr().out)["evaluation"]["negatives"] == 4


@pytest.mark.parametrize("file", [name for name in READERS if name != MANIFEST])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_file_is_one_message_that_names_it(damaged, reads, fault, file):
    damage(damaged / "a" / file, FAULTS[fault])
    for reader in READERS[file]:
        said = reads(reader, damaged)
        assert "not a complete run folder" in said
        assert file in said
        assert "delete it and train again" in said


@pytest.mark.parametrize("fault", ["missing", "empty", "cut in the middle", "first byte flipped", "a folder"])
def test_a_damaged_manifest_is_one_message(damaged, reads, fault):
    damage(damaged / "a" / MANIFEST, FAULTS[fault])
    for reader in READERS[MANIFEST]:
        assert "xpected a run folder" in reads(reader, damaged)


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_that_is_none_is_one_message(damaged, reads, kind):
    damage(damaged / "a" / MANIFEST, MANIFESTS[kind])
    for reader in READERS[MANIFEST]:
        said = reads(reader, damaged)
        assert "format 2" in said if kind == "newer" else "manifest" in said


def test_a_run_of_an_earlier_version_has_no_hashes_and_is_read(damaged):
    for name in ("format", "files"):
        without(damaged / "a" / MANIFEST, name)
    assert load_run(damaged / "a").item_ids == load_run(damaged / "b").item_ids
