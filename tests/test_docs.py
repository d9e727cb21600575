"""The documentation: links lead somewhere, Python blocks are Python, and the tutorial's own commands run."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from itertools import chain
from pathlib import Path

import click
import pytest
import yaml

from sda_features.cli.main import cli
from sda_features.demo.catalogue import make_catalogue
from sda_features.demo.model import build_tiny_model
from tests.installed import ROOT, install

DOCS = ROOT / "docs"
PAGES = sorted(path for folder in ("docs", "docker", "examples") for path in (ROOT / folder).rglob("*.md"))
PAGES += sorted(ROOT.glob("*.md"))
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.S | re.M)


def commands(page: Path, *languages: str) -> list[list[list[str]]]:
    """Block -> its lines that start with this product's name -> their words, without that name."""
    found = []
    for block in chain(*(blocks(page, language) for language in languages)):
        lines = block.replace("\\\n", " ").splitlines()
        said = [re.match(r"^[\s$(\-]*(?:run: )?sda-features ([a-z][^;&|]*)", line) for line in lines]
        words = [shlex.split(match[1], comments=True) for match in said if match]
        found.append([of_line for of_line in words if not {"...", "--help", "|"} & set(of_line)])
    return [lines for lines in found if lines]


@EACH_PAGE
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [name for name in targets if "://" not in name and not (page.parent / name).exists()]
    assert missing == []


@EACH_PAGE
def test_python_blocks_are_python_and_import_what_there_is(page: Path) -> None:
    """tests/serving/test_slim.py runs those that read vectors, `test_the_tutorials_commands_run` the tutorial's."""
    for text in blocks(page, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("sda_features"):
                for alias in node.names:
                    assert hasattr(importlib.import_module(str(node.module)), alias.name), alias.name


@EACH_PAGE
def test_yaml_blocks_are_yaml(page: Path) -> None:
    for text in blocks(page, "yaml"):
        assert list(yaml.safe_load_all(text))


def test_the_manifests_run_the_image_with_a_known_command() -> None:
    manifests = [yaml.safe_load(text) for text in blocks(DOCS / "how-to" / "schedule.md", "yaml")]
    assert [manifest["kind"] for manifest in manifests] == ["CronJob", "Job"]
    for manifest in manifests:
        spec = manifest["spec"].get("jobTemplate", manifest)["spec"]["template"]["spec"]
        parse(spec["containers"][0]["args"])
        assert {mount["name"] for mount in spec["containers"][0]["volumeMounts"]} == {
            volume["name"] for volume in spec["volumes"]
        }


def parse(words: list[str]) -> None:
    """Whether the command line takes these arguments; nothing is run."""
    with click.Context(cli, info_name="sda-features") as root:
        command = cli.get_command(root, words[0])
        assert command is not None, f"no command {words[0]}"
        try:
            command.make_context(words[0], list(words[1:]), parent=root)
        except click.BadParameter as error:
            if "does not exist" not in error.message:
                raise


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name != "experiments.md"],  # a log: what was run then
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_commands_are_commands(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in chain(*commands(page, "console", "bash", "sh", "yaml")):
        parse(words)


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page() -> None:
    def pages(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        parts = entry if isinstance(entry, list) else list(entry.values())  # type: ignore[attr-defined]
        return [name for part in parts for name in pages(part)]

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(pages(nav)) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tutorials_commands_run(tmp_path: Path, redis_server: tuple[str, int]) -> None:
    """From an empty folder and `pip install` on; catalogue, model and server are named."""
    programs = install(tmp_path)
    where = [programs / "python", "-c", "import sda_features; print(sda_features.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(found.stdout).is_relative_to(programs.parent)
    make_catalogue(120).write(tmp_path / "items.parquet")
    build_tiny_model(tmp_path / "model", ["title is oak table"], hidden_size=64, layers=1, vision_layers=1)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "HF_HUB_OFFLINE": "1",
    }
    names = {"CATALOG": "items.parquet", "MODEL": "model", "REDIS": f"{redis_server[0]}:{redis_server[1]}"}
    page = DOCS / "tutorial.md"
    export, *shell = blocks(page, "bash")
    assert set(re.findall(r"(\w+)=", export)) == set(names)
    for number, script in enumerate(shell):
        script = script.replace("project: shop", f"project: shop{os.getpid()}")
        done = subprocess.run(
            ["bash", "-euc", script], cwd=tmp_path, env=environment | names, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, number
    (python,) = blocks(page, "python")
    read = subprocess.run(
        [programs / "python", "-c", python.replace("an id of yours", "item-00003")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "(2, 64) [ True False]" in read.stdout
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_the_workflow_files_are_yaml_and_run_what_the_makefile_has() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
        commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
        used = {name for command in commands for name in re.findall(r"\bmake ([a-z-]+)", command)}
        assert used <= targets
        assert json.dumps(jobs)
