"""The commands and Python that README and docs show are run, on a small shop where the files they name are.

`tests/test_docs.py` runs the tutorial from an empty environment and holds that the rest parses;
`tests/serving/test_slim.py` runs the lookups by address.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from sda_features import Repo
from sda_features.cli.main import cli
from sda_features.demo.catalogue import make_catalogue
from sda_features.demo.model import build_tiny_model
from sda_features.demo.purchases import make_interactions
from tests.lvlm.dual_models import build_dual_model
from tests.shop import run
from tests.test_docs import PAGES, ROOT, blocks, commands

REPO = "shop/feature_repo"
SETS = ["sda", "vanilla", "clip", "no_cmsa", "no_moda", "no_soft"]
TRAINING = "--epochs 1 --validate-every 1 --max-length 5 --seeds 0 --threads 1"
SMALL = {  # options that come last and so win; no check stands on what a page says here
    "adapt": "--steps 2 --batch-size 8 --quantization none",
    "diagnose": "--items 8 --batch-size 8",
    "index": "--codes 3x16",
    "train": TRAINING,
    "table1": TRAINING,
    "table2": TRAINING,
    "modality": TRAINING,
}
STATUSES = {"gate": {0, 3}, "doctor": {0, 1}}  # a random model may well fail; all else must succeed
NOT_HERE = {
    "stream": "runs for ever: tests/workflows/test_stream.py",
    "demo": "tests/demo/test_walk.py",
    "--engine ray": "tests/test_ray_engine.py",
    "s3://": "tests/feature_store/test_s3.py",
    "--gated": "a random model does not pass the gate: tests/workflows/test_seeing.py",
    "gru4rec": "tests/examples",
}


def replaced(table: pa.Table, ids: pa.Array) -> pa.Table:
    """With other item ids."""
    return table.set_column(table.schema.get_field_index("item_id"), "item_id", ids)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, new_repo: Callable[..., Path]) -> Path:
    """A folder with every file that a page names, and a repo with two versions of `sda`."""
    folder = tmp_path_factory.mktemp("docs")
    catalogue = make_catalogue(140, spoil=False)
    log = make_interactions(catalogue, 250)
    names = {old: f"B{number:03d}" for number, old in enumerate(catalogue.item_ids, 1)}
    ids = pa.array(names.values())
    items = replaced(catalogue.table, ids).append_column("product_code", ids)
    pq.write_table(items, folder / "items.parquet")
    pq.write_table(
        replaced(log, pa.array(map(names.get, log["item_id"].to_pylist()))), folder / "log.parquet"
    )
    for model in ("standin", "MODEL", "Qwen/Qwen2.5-VL-7B-Instruct"):
        build_tiny_model(folder / model, ["title is oak table"], hidden_size=64, layers=1, vision_layers=1)
    build_dual_model(folder / "openai" / "clip-vit-large-patch14", "clip")
    (folder / "ml1m").mkdir()
    for copy, of in (("ml1m/items", "items"), ("ml1m/interactions", "log"), ("interactions", "log")):
        shutil.copy(folder / f"{of}.parquet", folder / f"{copy}.parquet")
    (folder / "shop").mkdir()
    new_repo(folder / REPO, feature_sets=SETS, slots=4)
    (folder / "fresh").mkdir()
    shutil.copy(folder / REPO / "feature_store.yaml", folder / "fresh")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number, name in enumerate(("sda", "new", "lora")):
            adapter = ["--adapter", "lora"] if name == "lora" else []
            options = [*SMALL["adapt"].split(), "--seed", number, *adapter, "-o", f"runs/{name}"]
            run("adapt", "items.parquet", "--model", "standin", *options)
        (folder / "runs" / "moda").symlink_to("sda")
        (folder / "adapt").symlink_to("runs/sda")
        columns = [pa.array([[float(i), j, 1] for i in range(len(ids))]) for j in (1.0, 2.0)]
        vectors = pa.table({"item_id": ids, "text": columns[0], "image": columns[1]})
        for name in ("vectors", "vanilla", "sda", "half-vanilla", "half-sda"):
            pq.write_table(vectors, f"{name}.parquet")
        given = ["--vectors", "vectors.parquet", "--text-vectors", "text", "--image-vectors", "image"]
        for name in SETS[1:]:
            run("materialize", *given, "--repo", REPO, "--feature-set", name)
        run("train", "log.parquet", *TRAINING.split(), "-o", "runs/sasrec")
    return folder


def write_settings(page: Path, shop: Path) -> None:
    """The settings file of the repo, if the page shows it."""
    shown = next(iter(blocks(page, "toml")), "")
    (shop / REPO / "sda-features.toml").write_text(shown if shown.startswith(f"# {REPO}") else "")


def two_versions() -> str:
    """Both versions of `sda` stored, that of runs/sda live; returns that of runs/new."""
    for name in ("sda", "new"):
        checkpoint = f"runs/{name}/checkpoint"
        run("materialize", "items.parquet", "--checkpoint", checkpoint, "--repo", REPO, "--promote")
    versions = Repo(REPO)["sda"]
    new = str(versions.status().live)
    versions.rollback()
    return new


LANGUAGES = ("console", "bash", "sh")
ELSEWHERE = ("experiments.md", "tutorial.md")  # a log of what was run then; run by tests/test_docs.py
RUN_HERE = [page for page in PAGES if page.name not in ELSEWHERE and commands(page, *LANGUAGES)]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", RUN_HERE, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_run(page: Path, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop)
    write_settings(page, shop)
    for block in commands(page, *LANGUAGES):
        names = {"526f": two_versions()[:4], "shop": REPO, "feature_repo": REPO}
        for said in block:
            line = " ".join(said)
            if any(reason in line for reason in NOT_HERE):
                continue
            verb, *options = [names.get(word, word) for word in said]
            takes = {name for option in cli.get_command(None, verb).params for name in option.opts}  # type: ignore[arg-type,union-attr]
            if verb == "init":
                options.append("fresh")
            if "--repo" in takes and "--repo" not in options:
                options += ["--repo", REPO]
            done = CliRunner().invoke(cli, [verb, *options, *SMALL.get(verb, "").split()])
            assert done.exit_code in STATUSES.get(verb, {0}), f"{line}\n{done.output}"
            assert done.exception is None or isinstance(done.exception, SystemExit), line


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["README.md", "docs/serving.md", "docs/how-to/look.md", "docs/how-to/python.md"]
)
def test_python_runs(name: str, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop)
    two_versions()
    write_settings(ROOT / name, shop)
    for block in blocks(ROOT / name, "python"):
        if "redis://" not in block:
            block = block.replace("dim=256", "dim=64")
            exec(compile(block, name, "exec"), {"candidate_ids": ["B001", "no-such-item"]})
