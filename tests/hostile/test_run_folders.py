"""Run folders of recommenders that are damaged, foreign or of another format, for all that reads them."""

import json
import shutil
from collections.abc import Callable
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
Damage = Callable[[Path, Path], object]  # of a file; the second is the same file of another run


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


FAULTS = {
    "missing": lambda path, _: path.unlink(),
    "empty": lambda path, _: path.write_bytes(b""),
    "cut": lambda path, _: path.write_bytes(path.read_bytes()[:-9]),
    "cut in the middle": lambda path, _: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "first byte flipped": lambda path, _: flip(path, 0),
    "a byte flipped": lambda path, _: flip(path, 0.6),
    "last byte flipped": lambda path, _: flip(path, 1),
    "of another run": lambda path, other: shutil.copy(other, path),
    "a git-lfs pointer": lambda path, _: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
    "a folder": lambda path, _: replace_by_folder(path),
    "a link to nowhere": lambda path, _: (path.unlink(), path.symlink_to("nowhere")),
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
        again = ["evaluate", run, "--negatives", "4", "--interactions", folder / "log.csv"]
        return fails(
            *{"compare": ["compare", run, folder / "b"], "again": again, "evaluate": ["evaluate", run]}[
                reader
            ]
        )

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
    FAULTS[fault](damaged / "a" / file, damaged / "b" / file)
    for reader in READERS[file]:
        said = reads(reader, damaged)
        assert "not a complete run folder" in said
        assert file in said
        assert "delete it and train again" in said


@pytest.mark.parametrize("fault", ["missing", "empty", "cut in the middle", "first byte flipped", "a folder"])
def test_a_damaged_manifest_is_one_message(damaged, reads, fault):
    FAULTS[fault](damaged / "a" / MANIFEST, damaged / "b" / MANIFEST)
    for reader in READERS[MANIFEST]:
        assert "xpected a run folder" in reads(reader, damaged)


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_that_is_none_is_one_message(damaged, reads, kind):
    content = MANIFESTS[kind]
    path = damaged / "a" / MANIFEST
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content).encode()
    path.write_bytes(content)
    for reader in READERS[MANIFEST]:
        said = reads(reader, damaged)
        assert "format 2" in said if kind == "newer" else "manifest" in said


def test_a_run_of_an_earlier_version_has_no_hashes_and_is_read(damaged):
    path = damaged / "a" / MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({key: manifest[key] for key in manifest if key not in ("format", "files")}))
    assert load_run(damaged / "a").item_ids == load_run(damaged / "b").item_ids
