"""`sda-features.toml`: options of commands, written down once for a repo.

    feature_set = "sda"                    # at the top: every command that has the option
    [catalog]                              # a settings model, see SECTIONS
    path = "items.parquet"
    [materialize]                          # a command
    batch_size = 64
    [sets.vanilla]                         # commands about one feature set
    model = "Qwen/Qwen2.5-VL-7B-Instruct"

What is given on the command line, or to a call, wins; then feature set, command, settings model, top.
Paths are relative to the file.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sda_features import config
from sda_features.api.calls import CALLS, Call, defaults, did_you_mean
from sda_features.artifacts import atomic_file
from sda_features.config import Settings
from sda_features.errors import SettingsError
from sda_features.results import Result, text_table

FILE_NAME = "sda-features.toml"
SECTIONS: dict[str, type[Settings]] = {
    "catalog": config.CatalogSettings,
    "backbone": config.BackboneSettings,
    "prompts": config.PromptSettings,
    "adapter": config.AdapterSettings,
    "loss": config.LossSettings,
    "behaviour": config.BehaviourSettings,
    "projection": config.ProjectionSettings,
    "training": config.TrainSettings,
    "log": config.LogSettings,
    "recommender": config.RecommenderSettings,
    "evaluation": config.EvaluationSettings,
    "vector_evaluation": config.VectorEvaluationSettings,
    "limits": config.GateSettings,
}
SETS = "sets"
OF_PYTHON = {"progress", "echo"}  # options that the command line has no words for
PATHS = {"catalog", "interactions", "checkpoint", "model", "vectors", "image_root", "output", "report"}
OF_ENCODING = {"catalog", "checkpoint", "model", "dim"}  # what `vectors` that are given replace


@dataclass(frozen=True)
class SettingsFile:
    """What a settings file says; without a file, nothing.

    Attributes:
        path: the file.
        tables: its tables by name, with that of the top under "".
    """

    path: Path | None = None
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def of(self, call: Call, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a call that it sets and that are not `given`."""
        return {name: value for name, (value, _) in self.found(call, given).items()}

    def found(self, call: Call, given: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
        """Like `of`, with the table that each value stands in."""
        values = {name: (value, "") for name, value in self.tables.get("", {}).items() if name in call.names}
        for group in call.groups:
            section = next((name for name, model in SECTIONS.items() if model is group.model), "")
            for name, setting in group.options().items():
                if setting in self.tables.get(section, {}):
                    values[name] = (self.tables[section][setting], section)
        if "catalog" in call.names and (path := self.tables.get("catalog", {}).get("path")):
            values["catalog"] = (path, "catalog")
        chosen = given.get("feature_set") or values.get("feature_set", ("sda", ""))[0]
        for table in (call.verb, f"{SETS}.{chosen}"):
            values |= {
                name: (value, table)
                for name, value in self.tables.get(table, {}).items()
                if name in call.names
            }
        dropped = OF_ENCODING if given.get("vectors") is not None else set()
        return {
            name: (self._place(name, value), table)
            for name, (value, table) in values.items()
            if name not in given and name not in dropped
        }

    def limits(self, repo: Path, path: Path | None = None) -> config.GateSettings:
        """What `gate` holds a version to: the file at `path`, else [limits], else sda-gate.toml of the repo.

        Raises:
            SettingsError: that file cannot be read, or has a key or value that is not known.
        """
        before = repo / "sda-gate.toml"  # the name that such a file had alone
        if path is None and ("limits" in self.tables or not before.exists()):
            return config.GateSettings.parse(**self.tables.get("limits", {}))
        return config.GateSettings.parse(**_read_toml(path or before))

    def _place(self, name: str, value: Any) -> Any:
        """A path as seen from here; a name of a model or a URL as it is."""
        if name not in PATHS or not isinstance(value, str) or "://" in value or self.path is None:
            return value
        here = self.path.parent / value
        return str(here) if here.exists() or name != "model" else value


def read_settings_file(folder: Path | str = ".", path: Path | str | None = None) -> SettingsFile:
    """The file at `path`, else `folder`/sda-features.toml if there is one.

    Raises:
        SettingsError: it cannot be read, or has a table, a key or a value that is not known.
    """
    place = Path(path) if path is not None else Path(folder) / FILE_NAME
    if path is None and not place.is_file():
        return SettingsFile()
    _load_calls()
    content = _read_toml(place)
    tables: dict[str, Mapping[str, Any]] = {"": {}}
    for name, value in content.items():
        if name == SETS and isinstance(value, dict):
            tables |= {f"{SETS}.{inner}": table for inner, table in value.items()}
        elif isinstance(value, dict):
            tables[name if name in SECTIONS else name.replace("_", "-")] = value  # a command as it is typed
        else:
            tables[""] = {**tables[""], name: value}
    for name, table in tables.items():
        _check(place, name, table)
    return SettingsFile(place, tables)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path}: not a readable TOML file of settings: {error}") from None


def _check(place: Path, name: str, table: Any) -> None:
    where = f"{place}, [{name}]" if name else str(place)
    if not isinstance(table, dict):
        raise SettingsError(f"{where}: expected a table, got {table!r}.")
    if name == "" or name.startswith(f"{SETS}."):
        known = frozenset().union(*(call.names for call in CALLS.values()))
    elif name in SECTIONS:
        known = frozenset(SECTIONS[name].model_fields)
    elif name in CALLS:
        known = CALLS[name].names
    else:
        raise SettingsError(f"{where}: no such table.{did_you_mean(name, {*SECTIONS, *CALLS, SETS})}")
    for key in table:
        if key not in known:
            tables = {*SECTIONS, *CALLS} if name == "" else set()
            raise SettingsError(f"{where}: no setting {key!r}.{did_you_mean(key, {*known, *tables})}")
    if name in SECTIONS and table:
        model = SECTIONS[name]
        needed = {key for key, setting in model.model_fields.items() if setting.is_required()}
        try:
            model.parse(**{**dict.fromkeys(needed, "."), **table})
        except SettingsError as error:
            raise SettingsError(f"{where}: {error}") from None


@dataclass(frozen=True)
class EffectiveSettings(Result):
    """Settings: name, value, and the table of the file that it stands in, or "default"."""

    path: Path | None
    settings: list[tuple[str, Any, str]]

    def __str__(self) -> str:
        heading = f"settings file  {self.path or f'none; `sda-features init` writes {FILE_NAME}'}"
        rows = [(name, "" if value is None else value, where) for name, value, where in self.settings]
        table = text_table(rows, ["setting", "value", "from"], ["left"] * 3)
        return f"{heading}\n\n{table}" if rows else heading


def effective_settings(file: SettingsFile, verb: str | None, feature_set: str) -> EffectiveSettings:
    """What a file sets, or what holds for every option of a command.

    Raises:
        SettingsError: there is no such command.
    """
    _load_calls()
    if verb is None:
        tables = file.tables.items()
        return EffectiveSettings(
            file.path, [(key, value, _label(name)) for name, table in tables for key, value in table.items()]
        )
    if verb not in CALLS:
        raise SettingsError(f"{verb!r} is no command.{did_you_mean(verb, set(CALLS))}")
    held = {
        name: (name, value, "default")
        for name, value in defaults(CALLS[verb]).items()
        if name not in OF_PYTHON
    }
    for name, (value, table) in file.found(CALLS[verb], {"feature_set": feature_set}).items():
        held[name] = (name, value, _label(table))
    return EffectiveSettings(file.path, list(held.values()))


def _label(table: str) -> str:
    return f"[{table}]" if table else "top"


def _load_calls() -> None:
    """Have all calls in `CALLS`: their modules import this one."""
    import sda_features.api.functions
    import sda_features.api.repo  # noqa: F401


def write_settings_file(folder: Path) -> Path | None:
    """Write the file with every setting, its default and what it is, as comments; None if there is one."""
    path = folder / FILE_NAME
    if path.exists():
        return None
    lines = [
        "# Settings of sda-features for this repo; options of the command line win over them.",
        "# At the top: options of every command that has them. [materialize], [train] and so on: of one command.",
        "# [sets.NAME]: of commands about one feature set. `sda-features config VERB` prints what holds.",
        "",
        '# feature_set = "sda"',
        '# checkpoint = "runs/sda/checkpoint"',
        '# interactions = "interactions.parquet"',
    ]
    for section, model in SECTIONS.items():
        lines += ["", f"[{section}]"]
        for name, setting in model.model_fields.items():
            default = "" if setting.is_required() or setting.default is None else setting.default
            value = json.dumps(default)  # TOML writes these alike
            lines.append(f"# {name} = {value}  # {setting.description}")
    with atomic_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
