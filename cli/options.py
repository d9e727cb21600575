"""What verbs share: options made from settings models, the repo that they name, and how a result is shown.

Every setting is described once, on its field, and every default stands once, in the signature of the call.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from sda_features.api.calls import Call, defaults
from sda_features.api.repo import Repo
from sda_features.api.settings_file import FILE_NAME, read_settings_file
from sda_features.api.vector_set import VectorSet
from sda_features.artifacts import to_json
from sda_features.results import Result

from .ranges import PATH, Device, NumberOrNone, number_range

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

REPO = click.option("--repo", type=PATH, default=".", help="Feast repo.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
FEATURE_SET = click.option("--feature-set", default="sda", help="Feature set.")
VERSION = click.option("--version", help="Adapter version.  [default: the live one]")


class Verb(click.Command):
    """A command that takes what its user leaves out from the settings file, else from the call's defaults.

    Args:
        call: the call of the API that it makes.
    """

    def __init__(self, *arguments: Any, call: Call, **named: Any):
        super().__init__(*arguments, **named)
        self.call = call
        self.context_settings["show_default"] = True
        known = defaults(call)
        for param in self.params:
            if isinstance(param, click.Option) and not param.required and param.name in known:
                default = known[param.name]
                param.default = None if default == () else _as_typed(param, default)
        help_ = f"Settings file.  [default: {FILE_NAME} of the repo]"
        self.params.append(click.Option(["--config"], type=PATH, expose_value=False, help=help_))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the settings file that the arguments name, then the arguments."""
        parsed, _, _ = self.make_parser(ctx).parse_args(list(args))
        given: dict[str, Any] = {
            name: value for name, value in parsed.items() if isinstance(value, str | list | tuple)
        }
        file = read_settings_file(given.get("repo", "."), given.get("config"))
        ctx.meta[FILE_NAME] = file
        found = file.of(self.call, given)
        ctx.default_map = {
            param.name: _as_typed(param, found[param.name]) for param in self.params if param.name in found
        }
        return super().parse_args(ctx, args)


def _as_typed(param: click.Parameter, value: Any) -> Any:
    """A value of the settings file, or a default, as a user would type it."""
    if isinstance(value, list | tuple) and not param.multiple and param.nargs == 1:
        return ",".join(map(str, value))
    return value


def verb(call: Any) -> Callable[[Callable[..., None]], click.Command]:
    """Make a function the command of a call of the API."""
    return click.command(name=call.verb, cls=Verb, call=call)


def version_options(function: Decorated) -> Decorated:
    """Decorate a command with `--repo`, `--feature-set` and `--json`."""
    return REPO(FEATURE_SET(JSON(function)))


def open_repo(repo: Path) -> Repo:
    """The repo, with the settings file that this command has read."""
    return Repo(repo, settings=click.get_current_context().meta[FILE_NAME])


def vector_set(repo: Path, feature_set: str) -> VectorSet:
    """A feature set of the repo."""
    return open_repo(repo)[feature_set]


def show(result: Result, as_json: bool) -> None:
    """Print a result, and end with its exit status."""
    click.echo(to_json(result.as_dict()) if as_json else str(result))
    if result.exit_status:
        sys.exit(result.exit_status)


def say(line: str) -> None:
    """Print what a call does while it runs, beside its result."""
    click.echo(line, err=True)


def settings_options(call: Any) -> Callable[[Decorated], Decorated]:
    """Decorate a command with one option for each setting of its call.

    A field `max_length` becomes `--max-length`, with the prefix of its group before it.
    """

    def decorate(function: Decorated) -> Decorated:
        for group in reversed(call.groups):
            for option, name in reversed(group.options().items()):
                field = group.model.model_fields[name]
                attributes = _attributes(name, field) | {"required": group.defaults and field.is_required()}
                function = click.option(*_declaration(option, field), **attributes)(function)
        return function

    return decorate


def _declaration(parameter: str, field: FieldInfo) -> list[str]:
    option = "--" + parameter.replace("_", "-")
    if _unwrap_optional(field.annotation)[0] is bool:
        option += "/--no-" + parameter.replace("_", "-")
    return [option, parameter]


def _attributes(name: str, field: FieldInfo) -> dict[str, Any]:
    attributes: dict[str, Any] = {"help": field.description}
    annotation, optional = _unwrap_optional(field.annotation)
    if get_origin(annotation) is Literal:
        attributes["type"] = click.Choice([str(choice) for choice in get_args(annotation)])
    elif get_origin(annotation) is tuple:
        attributes |= {"callback": _comma_separated, "metavar": "A,B,..."}
    elif annotation in (int, float):
        numbers = number_range(annotation, field.metadata)
        attributes["type"] = NumberOrNone(numbers) if optional and field.default is not None else numbers
    elif get_origin(annotation) is Annotated:  # a number of a range, or one of some words
        kind, limits = get_args(annotation)[:2]
        options = chain.from_iterable(map(get_args, get_args(field.annotation)))
        words = [word for word in options if isinstance(word, str)]
        attributes["type"] = NumberOrNone(number_range(kind, limits.metadata), words)
    elif annotation is Path:
        attributes["type"] = PATH
    elif name == "device":
        attributes["type"] = Device()
    return attributes


def _unwrap_optional(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) in (Union, types.UnionType):
        options = [option for option in get_args(annotation) if option is not type(None)]
        return options[0], True
    return annotation, False


def _comma_separated(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (value or "").split(",") if part.strip())
