"""What tests of jobs work with: the command line, tiny models on the CPU, and the settings of a catalogue."""

from functools import partial

from click.testing import CliRunner

from sda_features.cli.main import cli
from sda_features.config import BackboneSettings, CatalogSettings, PromptSettings
from sda_features.demo.model import build_tiny_model
from sda_features.lvlm.checkpoint import unadapted


def run(*arguments):
    """Standard output of a command, which must succeed; its own exceptions pass."""
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def on_cpu(model, **settings):
    """Settings of a model that is not quantised."""
    return BackboneSettings.parse(model=str(model), **{"quantization": "none", "device": "cpu"} | settings)


def tiny_encoder(model, *, seed=0, **prompts):
    """Loads a tiny model without an adapter, which is built first where there is none."""
    if not model.exists():
        build_tiny_model(model, ["title is oak table"], hidden_size=64, layers=1, vision_layers=1, seed=seed)
    return partial(unadapted, on_cpu(model), PromptSettings.parse(**prompts))


def catalog(path, **settings):
    """Settings of a catalogue that may have any number of bad rows."""
    return CatalogSettings.parse(path=path, **{"max_bad_rows": 1.0} | settings)
