"""What `pip install sda-features` gives: a reader that needs numpy and redis, and a word on what else there is."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from sda_features.cli.failures import _extra_with
from tests.feast_repo import config
from tests.installed import ROOT, install, link, with_dependencies
from tests.serving.stored import put

FEATURES = {"text": [3, 0, 4], "image": [0, 1, 0]}
HEAVY = {
    "torch",
    "feast",
    "transformers",
    "pandas",
    "pyarrow",
    "pydantic",
    "click",
    "yaml",
    "google.protobuf",
}
ASYNCHRONOUS = """
import asyncio
from sda_features.serving import AsyncEmbeddingClient
async def read():
    async with AsyncEmbeddingClient(ADDRESS, project="shop", feature_set="sda", dim=3) as client:
        return await client.get(candidate_ids)
again = asyncio.run(read())
assert (again.text == found.text).all() and (again.image == found.image).all()
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("slim"), *with_dependencies("numpy", "redis"))


@pytest.fixture
def project(server, project) -> str:
    put(server, project, "a", *FEATURES.values())
    return project


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], cwd="/", capture_output=True, text=True, check=False)


@pytest.mark.parametrize("page", ["README.md", "docs/feast.md"])
def test_the_lookup_of_a_page_needs_numpy_and_redis_alone(page, programs, project, url) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    (block,) = (found for found in re.findall(r"```python\n(.*?)```", text, re.S) if '"shop"' in found)
    block = block.replace('["B001", "B002"]', "candidate_ids")
    script = (
        f"import json, sys\ncandidate_ids = ['a', 'no-such-item']\n{block}{ASYNCHRONOUS}"
        "values = {name: getattr(found, name).tolist() for name in ('text', 'text_found', 'image', 'image_found')}\n"
        "print(json.dumps([values, sorted(sys.modules)]))"
    )
    for old, new in (("redis://localhost:6379", url), ('"shop"', f'"{project}"'), ("dim=256", "dim=3")):
        assert old in script
        script = script.replace(old, new)
    done = run(programs / "python", "-c", script.replace("ADDRESS", repr(url)))
    assert done.returncode == 0, done.stderr
    values, modules = json.loads(done.stdout)
    for name, vector in FEATURES.items():
        assert values[name] == [vector, [0, 0, 0]]
        assert values[f"{name}_found"] == [True, False]
    assert not HEAVY & set(modules)
    assert {name.split(".")[0] for name in modules} >= {"numpy", "redis", "sda_features"}


def test_the_command_says_in_one_line_which_extra_it_needs(programs, project, redis_server, tmp_path) -> None:
    """Alone; with what the command line needs, which is enough for `lookup`; and a verb that needs more."""
    done = run(programs / "sda-features", "--help")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: This needs click, which is not installed: pip install 'sda-features[cli]'.\n"
    )
    (sites,) = (programs.parent / "lib").glob("python*/site-packages")
    cli = ("click", "fsspec", "jinja2", "pillow", "pyarrow", "pydantic", "pyyaml", "scipy", "tqdm", "urllib3")
    link(sites, *with_dependencies(*cli))
    (tmp_path / "feature_store.yaml").write_text(config(project, redis_server))
    found = json.loads(run(programs / "sda-features", "lookup", "a", "--repo", tmp_path, "--json").stdout)
    assert found["items"][0]["text"] == {"dim": 3, "norm": 5.0, "values": [3, 0, 4]}
    (tmp_path / "items.csv").write_text("item_id,title\na,lamp\n")
    for extra, arguments in {
        "feast": ["versions", "--repo", tmp_path],
        "train": ["adapt", tmp_path / "items.csv", "--model", "m", "-o", tmp_path / "run"],
    }.items():
        done = run(programs / "sda-features", *arguments)
        assert done.returncode == 1
        assert re.fullmatch(
            rf"error: This needs \w+, which is not installed: pip install 'sda-features\[{extra}\]'\.\n",
            done.stderr,
        ), done.stderr


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("yaml", "cli"),
        ("PIL", "cli"),
        ("feast", "feast"),
        ("pandas", "feast"),
        ("peft", "train"),
        ("torch", "train"),
        ("sklearn", "report"),
        ("faiss", "index"),
        ("ray", "ray"),
        ("tensorboard", "tensorboard"),
        ("numpy", None),
        ("redis._parsers.gone", None),
        (None, None),
    ],
)
def test_a_module_is_known_by_its_extra(module: str | None, extra: str | None) -> None:
    assert _extra_with(module) == extra
