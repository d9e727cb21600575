"""Click options made from settings models, so that every setting is described once, on its field."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sda_features.config import Settings

from .ranges import Device, NumberOrNone, number_range

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def settings_options(
    model: type[Settings], *, prefix: str = "", skip: tuple[str, ...] = (), defaults: bool = True
) -> Callable[[Decorated], Decorated]:
    """Decorate a command with one option for each field of `model`.

    Args:
        model: settings whose fields become options; a field `max_length` becomes `--max-length`.
        prefix: put before each option, e.g. "loss" makes `--loss-temperature`. The field `kind`
            then takes the prefix alone: `--loss`.
        skip: names of fields that get no option.
        defaults: whether an option that is not given has the field's default; else it is None, and
            `given` leaves it to something else, such as a preset.

    The command receives the values under the option's name; `collect` takes them back out.
    """

    def decorate(function: Decorated) -> Decorated:
        for name, field in reversed(model.model_fields.items()):
            if name not in skip:
                attributes = _attributes(name, field)
                if not defaults:
                    attributes |= {"default": None, "show_default": False, "required": False}
                function = click.option(*_declaration(prefix, name, field), **attributes)(function)
        return function

    return decorate


def collect(model: type[Settings], values: dict[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """The part of `values` that belongs to `model`, as keyword arguments for `model.parse`."""
    names = {name: _parameter(prefix, name) for name in model.model_fields}
    return {name: values[parameter] for name, parameter in names.items() if parameter in values}


def given(model: type[Settings], values: dict[str, Any]) -> dict[str, Any]:
    """Like `collect`, without the options that nobody gave."""
    return {name: value for name, value in collect(model, values).items() if value is not None}


def _parameter(prefix: str, name: str) -> str:
    if not prefix:
        return name
    return prefix if name == "kind" else f"{prefix}_{name}"


def _declaration(prefix: str, name: str, field: FieldInfo) -> list[str]:
    parameter = _parameter(prefix, name)
    option = "--" + parameter.replace("_", "-")
    if _unwrap_optional(field.annotation)[0] is bool:
        option += "/--no-" + parameter.replace("_", "-")
    return [option, parameter]


def _attributes(name: str, field: FieldInfo) -> dict[str, Any]:
    required = field.default is PydanticUndefined
    attributes: dict[str, Any] = {
        "help": field.description,
        "required": required,
        "default": None if required else field.default,
        "show_default": not required and field.default not in (None, ()),
    }
    annotation, optional = _unwrap_optional(field.annotation)
    if get_origin(annotation) is Literal:
        attributes["type"] = click.Choice([str(choice) for choice in get_args(annotation)])
    elif get_origin(annotation) is tuple:
        attributes.update(multiple=False, callback=_comma_separated, metavar="A,B,...")
        attributes["default"] = ",".join(field.default) if not required else None
        attributes["show_default"] = bool(attributes["default"])
    elif annotation in (int, float):
        numbers = number_range(annotation, field.metadata)
        attributes["type"] = NumberOrNone(numbers) if optional and field.default is not None else numbers
    elif get_origin(annotation) is Annotated:  # a number of a range, or one of some words
        kind, limits = get_args(annotation)[:2]
        words = [
            word
            for option in get_args(field.annotation)
            for word in get_args(option)
            if isinstance(word, str)
        ]
        attributes["type"] = NumberOrNone(number_range(kind, limits.metadata), words)
    elif annotation is Path:
        attributes["type"] = click.Path(path_type=Path)
    elif annotation is str:
        attributes["type"] = Device() if name == "device" else str
    return attributes


def _unwrap_optional(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) in (Union, types.UnionType):
        options = [option for option in get_args(annotation) if option is not type(None)]
        return options[0], True
    return annotation, False


def _comma_separated(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (value or "").split(",") if part.strip())
