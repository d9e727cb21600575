"""Every number option of every command, with values that nobody means."""

import math

import click
import pytest

from sda_features.cli.main import VERBS, cli

pytestmark = pytest.mark.hostile

VALUES = [
    "0",
    "-1",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "9" * 30,
    "-" + "9" * 30,
    "1e-320",
    "",
    "one",
    "0x10",
    "١٢",
]


def options():
    found = []
    for verb in VERBS:
        command = cli.get_command(click.Context(cli), verb)
        assert command is not None
        for parameter in command.params:
            kind = getattr(parameter.type, "numbers", parameter.type)
            if isinstance(parameter, click.Option) and kind.name.startswith(("integer", "float")):
                found.append((verb, parameter))
    return found


def bounds(option):
    kind = getattr(option.type, "numbers", option.type)
    assert isinstance(kind, click.IntRange | click.FloatRange), "a number without a range"
    assert kind.min is not None, "no least value"
    assert kind.max is not None, "no greatest value"
    return kind


@pytest.mark.parametrize(("verb", "option"), options(), ids=lambda value: getattr(value, "name", value))
def test_a_number_is_within_its_range_or_a_usage_error(verb, option):
    kind = bounds(option)
    context = click.Context(click.Command(verb))
    for value in VALUES:
        try:
            got = option.type.convert(value, option, context)
        except click.UsageError:
            continue
        assert math.isfinite(got), value
        assert kind.min is not None
        assert kind.max is not None
        assert kind.min <= got <= kind.max, value
        assert not (kind.min_open and got == kind.min), value
        assert got == float(value), value
    if isinstance(option.default, int | float):
        assert kind.convert(option.default, option, context) == option.default


def test_the_walk_meets_every_number():
    assert len(options()) > 120
    assert {"shard_rows", "batch_size", "learning_rate", "seed", "dim"} <= {o.name for _, o in options()}


@pytest.mark.parametrize("seeds", ["-1", "1,-2", "nan", "9" * 30, "", ",", "1.5"])
@pytest.mark.parametrize("verb", ["train", "table1", "table2", "modality"])
def test_seeds_are_whole_numbers_in_range(verb, seeds):
    arguments = ["log.parquet", "--seeds", seeds, *(["-o", "x"] if verb != "train" else [])]
    arguments += ["--features", "id"] if verb == "table2" else []
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    with pytest.raises(click.BadParameter):
        command.make_context(verb, arguments)


@pytest.mark.parametrize("device", ["quantum", "", "cuda:", "cuda:x", "cuda:1000", "CPU", "cpu\n", "cuda:-1"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["adapt", "items.parquet", "-o", "run", "--model", "m"],
        ["materialize", "items.parquet", "--model", "m"],
        ["diagnose", "--catalog", "items.parquet"],
        ["train", "log.parquet"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_device_is_one_that_torch_knows(arguments, device):
    command = cli.get_command(click.Context(cli), arguments[0])
    assert command is not None
    with pytest.raises(click.BadParameter, match="is no device; expected auto, cpu, cuda"):
        command.make_context(arguments[0], [*arguments[1:], "--device", device])
