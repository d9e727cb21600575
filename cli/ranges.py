"""Option types that say their range and refuse what lies outside, NaN and infinity too."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from annotated_types import Ge, Gt, Le, Lt

from sda_features.artifacts import real_path
from sda_features.config import DEVICE, MANY, SEED
from sda_features.errors import SettingsError


class FiniteRange(click.FloatRange):
    """A range of numbers that are finite; click's own lets NaN through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or a usage error."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class NumberOrNone(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number of a range, the word none, or another word that a setting knows.

    Args:
        numbers: the range.
        words: these others.
    """

    def __init__(self, numbers: click.ParamType[Any], words: Sequence[str] = ()):
        self.numbers, self.words = numbers, words
        self.name = " or ".join([numbers.name, *words, "none"])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, None, or a usage error."""
        if isinstance(value, str) and value.lower() == "none":
            return None
        if value in self.words:
            return value
        return self.numbers.convert(value, param, ctx)


class Device(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """The name of a torch device; whether the machine has it shows when it is used."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name, or a usage error."""
        if not re.fullmatch(DEVICE, value):
            self.fail(f"{value!r} is no device; expected auto, cpu, cuda, cuda:1 or the like.", param, ctx)
        return str(value)


class Names(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A,B,... as a list without repeats."""

    name = "A,B,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The names, or a usage error."""
        found = list(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
        if not found:
            self.fail("expected at least one name", param, ctx)
        return found


class Seeds(Names):
    """Seeds of runs, as A,B,..."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The numbers, or a usage error."""
        try:
            seeds = [int(part) for part in super().convert(value, param, ctx)]
        except ValueError:
            seeds = [-1]
        if not all(0 <= seed <= SEED for seed in seeds):
            self.fail(f"expected whole numbers from 0 to {SEED} such as 0,1,2, got {value!r}", param, ctx)
        return seeds


class OutputFile(click.Path):
    """A file to write in a folder that exists: what is wrong shows before any work is done."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, or a usage error."""
        path = _output(self, value, param, ctx)
        if not path.parent.is_dir():
            self.fail(f"{path.parent} is no folder; create it first.", param, ctx)
        if path.exists() and not path.is_file():
            self.fail(f"{path} is no regular file.", param, ctx)
        return path


class OutputFolder(click.Path):
    """A folder to write, which may be missing; a file or a device is refused before any work is done."""

    def __init__(self) -> None:
        super().__init__(file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, or a usage error."""
        path = _output(self, value, param, ctx)
        there = next(way for way in (path, *path.absolute().parents) if way.exists())
        if not there.is_dir():
            self.fail(f"{path} cannot be a folder: {there} is none.", param, ctx)
        return path


def _output(kind: click.Path, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
    try:
        path = Path(os.fsdecode(click.Path.convert(kind, value, param, ctx)))
        real_path(path)
    except (SettingsError, ValueError) as error:
        kind.fail(str(error), param, ctx)
    return path


PATH = click.Path(path_type=Path)
FOLDER = OutputFolder()
NAMES = Names()
SEEDS = click.IntRange(0, SEED)
COUNT = click.IntRange(1, MANY)


def number_range(kind: type, constraints: Sequence[Any]) -> click.ParamType[Any]:
    """The range that the constraints of a settings field say.

    Args:
        kind: int or float.
        constraints: of `FieldInfo.metadata`.
    """
    bounds: dict[str, Any] = {}
    for constraint in constraints:
        match constraint:
            case Gt(value):
                bounds |= {"min": value, "min_open": True}
            case Ge(value):
                bounds |= {"min": value}
            case Lt(value):
                bounds |= {"max": value, "max_open": True}
            case Le(value):
                bounds |= {"max": value}
    return FiniteRange(**bounds) if kind is float else click.IntRange(**bounds)
