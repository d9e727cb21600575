"""Every number option of every command, with values that nobody means."""

import math

import click
import pytest

from sda_features.cli.main import VERBS, cli

pytestmark = pytest.mark.hostile

VALUES = ["0", "-1", "nan", "inf", "-inf", "1e400", "1e-320", "9" * 30, "-" + "9" * 30]
VALUES += ["", "one", "0x10", "١٢"]


def number(option):
    """The type of its numbers, if they are some."""
    return getattr(option.type, "numbers", option.type)


OPTIONS = [
    (verb, option)
    for verb in VERBS
    for option in cli.get_command(None, verb).params
    if isinstance(option, click.Option) and number(option).name.startswith(("integer", "float"))
]


@pytest.mark.parametrize(("verb", "option"), OPTIONS, ids=lambda value: getattr(value, "name", value))
def test_a_number_is_within_its_range_or_a_usage_error(verb, option):
    kind = number(option)
    assert isinstance(kind, click.IntRange | click.FloatRange), "a number without a range"
    assert kind.min is not None, "no least value"
    assert kind.max is not None, "no greatest value"
    context = click.Context(click.Command(verb))
    for value in VALUES:
        try:
            got = option.type.convert(value, option, context)
        except click.UsageError:
            continue
        assert math.isfinite(got), value
        assert kind.min <= got <= kind.max, value
        assert not (kind.min_open and got == kind.min), value
        assert got == float(value), value
    if isinstance(option.default, int | float):
        assert kind.convert(option.default, option, context) == option.default


def test_the_walk_meets_every_number():
    assert len(OPTIONS) > 120
    assert {"shard_rows", "batch_size", "learning_rate", "seed", "dim"} <= {o.name for _, o in OPTIONS}


@pytest.mark.parametrize("seeds", ["-1", "1,-2", "nan", "9" * 30, "", ",", "1.5"])
@pytest.mark.parametrize("verb", ["train", "table1", "table2", "modality"])
def test_seeds_are_whole_numbers_in_range(verb, seeds):
    arguments = ["log.parquet", "--seeds", seeds, *(["-o", "x"] if verb != "train" else [])]
    arguments += ["--features", "id"] if verb == "table2" else []
    with pytest.raises(click.BadParameter):
        cli.get_command(None, verb).make_context(verb, arguments)


@pytest.mark.parametrize("device", ["quantum", "", "cuda:", "cuda:x", "cuda:1000", "CPU", "cpu\n", "cuda:-1"])
@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("adapt", ["items.parquet", "-o", "run", "--model", "m"]),
        ("materialize", ["items.parquet", "--model", "m"]),
        ("diagnose", ["--catalog", "items.parquet"]),
        ("train", ["log.parquet"]),
    ],
)
def test_a_device_is_one_that_torch_knows(verb, arguments, device):
    with pytest.raises(click.BadParameter, match="is no device; expected auto, cpu, cuda"):
        cli.get_command(None, verb).make_context(verb, [*arguments, "--device", device])
