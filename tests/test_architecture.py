"""The rules of ARCHITECTURE.md that a machine can hold: layers, and what is installed."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sda_features"
# A module may import modules of lower layers and of its own package; equal numbers are siblings.
LAYER = {
    "cli": 9,
    "api": 8,
    "demo": 7,
    "workflows": 6,
    "feature_store": 5,
    "lvlm": 5,
    "recommenders": 5,
    "report": 5,
    "feast_plugins": 4,
    "online": 3,
    "offline": 2,
    "evaluation": 2,
    "serving": 1,
    "logs": 1,
    "catalog": 1,
    "artifacts": 0,
    "tables": 0,
    "config": -1,
    "locations": -1,
    "devices": -1,
    "errors": -2,
    "results": -2,
}
HEAVY = {
    "serving": {"torch", "feast", "transformers", "pandas", "pyarrow"},
    "evaluation": {"torch", "feast", "transformers", "pandas", "pyarrow"},
    "feature_store": {"torch", "transformers", "peft"},
    "feast_plugins": {"torch", "transformers", "peft"},
    "online": {"torch", "feast", "pandas"},
    "offline": {"torch", "feast", "redis", "pandas"},
    "lvlm": {"feast", "redis"},
    "recommenders": {"feast", "redis", "transformers"},
}
# A module -> what it alone of its unit may import.
ALLOWED = {"sda_features/serving/snapshot.py": {"pyarrow"}}


def modules() -> list[tuple[str, Path]]:
    inside = [
        (path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path) for path in PACKAGE.rglob("*.py")
    ]
    inside += [("cli", path) for path in (ROOT / "cli").glob("*.py")]
    return [(unit, path) for unit, path in inside if unit != "__init__"]


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_every_unit_has_a_layer() -> None:
    assert {unit for unit, _ in modules()} == set(LAYER)


@pytest.mark.parametrize(("unit", "path"), modules(), ids=lambda value: getattr(value, "name", value))
def test_imports_point_downward(unit: str, path: Path) -> None:
    used = {name.split(".")[1] for name in imports(path) if name.startswith("sda_features.")} & set(LAYER)
    upward = {other for other in used - {unit} if LAYER[other] >= LAYER[unit]}
    assert not upward, f"{path.relative_to(ROOT)} ({unit}) imports {', '.join(upward)}"


@pytest.mark.parametrize("unit", HEAVY)
def test_each_unit_keeps_away_from_libraries_that_are_not_its_business(unit: str) -> None:
    for other, path in modules():
        if other == unit:
            name = path.relative_to(ROOT).as_posix()
            found = {name.split(".")[0] for name in imports(path)} & HEAVY[unit] - ALLOWED.get(name, set())
            assert not found, f"{name} imports {', '.join(found)}"


def test_no_unit_imports_such_a_module_of_its_own() -> None:
    for unit, path in modules():
        for module in ALLOWED:
            name = module.removesuffix(".py").replace("/", ".")
            assert unit != name.split(".")[1] or name not in imports(path), path


def test_the_wheel_holds_every_package_folder_and_no_other() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {".".join(init.parent.relative_to(ROOT).parts) for init in PACKAGE.rglob("__init__.py")} | {
        "sda_features.cli"
    }
    assert set(settings["packages"]) == folders
    assert settings["package-dir"] == {"sda_features.cli": "cli"}


def test_nothing_is_unpickled_or_evaluated() -> None:
    for _, path in modules():
        assert not imports(path) & {"pickle", "dill", "cloudpickle", "joblib"}, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"eval", "exec", "torch.load", "torch.save", "yaml.load"}, (
                    f"{path}: {called}"
                )
                loose = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert loose.get("allow_pickle", "False") == "False", f"{path}: {called}"


def test_vectors_that_are_given_need_no_torch():
    code = "import sys, sda_features.workflows.materialize; sys.exit(bool({'torch', 'feast'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
