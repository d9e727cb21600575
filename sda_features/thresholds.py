"""`sda-gate.toml`: what a version must hold before it may be served."""

from __future__ import annotations

import tomllib
from pathlib import Path

from sda_features.artifacts import atomic_file
from sda_features.config import GateSettings
from sda_features.errors import SettingsError

FILE_NAME = "sda-gate.toml"


def read_thresholds(repo: Path, path: Path | None = None) -> GateSettings:
    """Thresholds of `path`, else of the repo's `sda-gate.toml`, else the defaults.

    Raises:
        SettingsError: the file is missing, no TOML, or has a key or value that is not known.
    """
    given = path or repo / FILE_NAME
    if path is None and not given.exists():
        return GateSettings()
    try:
        return GateSettings.parse(**tomllib.loads(given.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{given}: not a readable TOML file of thresholds: {error}") from None


def write_thresholds(repo: Path) -> Path | None:
    """Write `sda-gate.toml` with the defaults, each explained; None if the repo has one."""
    path = repo / FILE_NAME
    if path.exists():
        return None
    lines = ["# What a version must hold before it may be served: `sda-features gate`."]
    for name, field in GateSettings.model_fields.items():
        lines += ["", f"# {field.description}", f"{name} = {field.default}"]
    with atomic_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
