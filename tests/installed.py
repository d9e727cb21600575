"""An environment into which pip installed this package, as anybody would; what it needs is linked, not downloaded."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def install(folder: Path, *needs: str) -> Path:
    """Build the wheel in a folder and install it without a network into an environment of its own.

    Args:
        folder: an empty folder.
        needs: names of the only other packages that the environment has; none: all that are here.

    Returns:
        The environment's `bin`.
    """
    source, environment = folder / "source", folder / "environment"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("sda_features", "cli"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--quiet"]
    wheel = ["wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    subprocess.run([*pip, *wheel], check=True)
    venv.create(environment)
    (sites,) = (environment / "lib").glob("python*/site-packages")
    if not needs:
        (sites / "needs.pth").write_text(
            "\n".join(path for path in sys.path if path.endswith("site-packages"))
        )
    link(sites, *needs)
    (built,) = folder.glob("*.whl")
    python = ["--python", environment / "bin" / "python"]
    subprocess.run([*pip, *python, "install", "--no-index", "--no-deps", built], check=True)
    return environment / "bin"


def link(sites: Path, *needs: str) -> None:
    """Let an environment's site-packages have the packages `needs` of this one, and no other."""
    for need in needs:
        found = importlib.metadata.distribution(need)
        for name in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (sites / name).exists():  # two packages may share a folder
                (sites / name).symlink_to(Path(str(found.locate_file(name))).resolve())


def with_dependencies(*names: str) -> set[str]:
    """These distributions and all that they need, by normalised name."""
    found, waiting = set(), list(names)
    while waiting:
        key = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if key in found:
            continue
        found.add(key)
        for line in importlib.metadata.requires(key) or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                waiting.append(needed.name)
    return found
