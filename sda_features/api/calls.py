"""What every call has: options made of settings models, and defaults from a settings file."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from sda_features.config import Settings
from sda_features.errors import SettingsError

SettingsT = TypeVar("SettingsT", bound=Settings)
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Group:
    """Options that are the fields of a settings model.

    Attributes:
        model: the model.
        prefix: put before each option: "loss" makes `loss_temperature` of `temperature`; the field
            `kind` takes the prefix alone.
        skip: fields that are no option.
        defaults: whether an option that is not given has the field's default; else something else,
            such as a preset, has one.
    """

    model: type[Settings]
    prefix: str = ""
    skip: tuple[str, ...] = ()
    defaults: bool = True

    def options(self) -> dict[str, str]:
        """Option -> field."""
        return {self._option(field): field for field in self.model.model_fields if field not in self.skip}

    def _option(self, field: str) -> str:
        if not self.prefix:
            return field
        return self.prefix if field == "kind" else f"{self.prefix}_{field}"


class Call(Protocol):
    """A function or method of this API.

    Attributes:
        verb: the command it belongs to.
        groups: its options that are settings.
        names: all its options.
    """

    verb: str
    groups: tuple[Group, ...]
    names: frozenset[str]


CALLS: dict[str, Call] = {}  # by verb


def call(*groups: Group) -> Callable[[Function], Function]:
    """Make a function the call of the command of its name.

    Options that are not given are taken from `self.settings`, the settings file of the repo; an option that
    there is not is an error, before anything is done. The function gets options of `groups` as `**options`,
    as they were given; `parse` makes settings of them.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = frozenset(signature.parameters) - {"self", "options"}
        names = own.union(*(group.options() for group in groups))
        paths = {
            name for name, of in signature.parameters.items() if of.annotation in ("Path", "Path | None")
        }

        @functools.wraps(function)
        def run(*positional: Any, **named: Any) -> Any:
            if unknown := sorted(set(named) - names):
                hint = did_you_mean(unknown[0], names)
                raise SettingsError(f"{function.__name__}() has no option {unknown[0]!r}.{hint}")
            bound = signature.bind_partial(*positional, **named)
            given = {**bound.arguments, **bound.arguments.pop("options", {})}
            owner = given.pop("self", None)
            if owner is not None:
                given |= {"feature_set": of} if (of := getattr(owner, "feature_set", None)) else {}
                named |= owner.settings.of(made, given)
            as_paths = {name: Path(named[name]) for name in paths & named.keys() if named[name] is not None}
            return function(*positional, **named | as_paths)

        made: Any = run
        made.verb, made.groups = function.__name__.replace("_", "-"), groups
        made.names = names
        CALLS[made.verb] = made
        return cast(Function, run)

    return decorate


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that there is not: the nearest of those that there are, if one is near."""
    near = difflib.get_close_matches(name, known, 1)
    return f" Did you mean {near[0]!r}?" if near else ""


def defaults(call: Call) -> dict[str, Any]:
    """Option of a call -> its default, None where there is none."""
    signature = inspect.signature(cast(Any, call))
    found = {
        name: None if of.default is of.empty else of.default
        for name, of in signature.parameters.items()
        if name in call.names
    }
    for group in call.groups:
        for option, name in group.options().items():
            field = group.model.model_fields[name]
            found[option] = field.default if group.defaults and not field.is_required() else None
    return found


def given(group: Group, options: Mapping[str, Any]) -> dict[str, Any]:
    """Field -> value of the options of a group that were given; None is not given where a preset decides."""
    values = {field: options[option] for option, field in group.options().items() if option in options}
    return (
        values if group.defaults else {field: value for field, value in values.items() if value is not None}
    )


def parse(model: type[SettingsT], options: Mapping[str, Any], prefix: str = "", **more: Any) -> SettingsT:
    """Settings of the options that belong to `model`, and of `more` fields.

    Raises:
        SettingsError: they are not usable.
    """
    return model.parse(**{**given(Group(model, prefix), options), **more})
