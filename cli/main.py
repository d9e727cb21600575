"""The entry point: a lazy group of verbs and one place where errors become messages.

`sda-features --help` must answer in under half a second, so a verb's module is imported only when
that verb runs, and its call imports torch or feast only when it is made.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Sequence

import click
from click.shell_completion import shell_complete

from sda_features import __version__

from . import log
from .failures import explain

GROUPS = {
    "Start": {
        "demo": "Walk the whole product on generated data, offline, in minutes.",
        "init": "Add the item-vector definitions to a Feast repo.",
        "config": "Print which settings hold, and where each comes from.",
        "doctor": "Look at machine, repo, server and model; say what to do about each.",
    },
    "Make vectors": {
        "adapt": "Train MoDA adapters on a catalogue (paper, sections 2.1 and 2.2).",
        "diagnose": "Measure gradient conflict between text and pictures (paper, section 3.3.3).",
        "materialize": "Encode a catalogue and write its vectors to Feast, offline and online.",
        "stream": "Write the vectors of new items within seconds, from a Redis Stream.",
        "export": "Write a checkpoint as PEFT LoRA adapters, and as merged models.",
    },
    "Look and decide": {
        "inspect": "Measure a version's vectors: alignment, spread, neighbours, duplicates.",
        "report": "Write a page to look at: numbers, a map of items, neighbours side by side.",
        "similar": "List the items nearest to one, by text, picture or both.",
        "index": "Write an index of nearest items, and codes of items, for retrieval.",
        "gate": "Decide whether a version may be served: compare it with the live one.",
        "verify": "Compare catalogue, offline rows, online bytes and the trainers' matrix.",
    },
    "Serve": {
        "versions": "List the versions of a feature set that are stored.",
        "status": "Compare the version record, the offline rows and Redis; for monitors.",
        "promote": "Serve another version of a feature set, in one step.",
        "rollback": "Serve the version that was served before.",
        "prune": "Delete versions of a feature set that are not served.",
        "lookup": "Read item vectors from the online store.",
    },
    "Evaluate": {
        "evaluate-vectors": "Measure item vectors on a log without training: neighbours and next item.",
        "train": "Train a recommender on vectors from Feast and measure Hit@10 and NDCG@10.",
        "evaluate": "Print the metrics of a saved run, also under another protocol.",
        "compare": "Compare two runs user by user: paired t-test and bootstrap interval.",
        "table1": "Recommenders by feature sets, overall and in the tail (paper, Table 1).",
        "table2": "One recommender on the feature sets of an ablation (paper, Table 2).",
        "modality": "One recommender on text, image, and both (paper, Figure 3).",
    },
}
VERBS = {verb: line for verbs in GROUPS.values() for verb, line in verbs.items()}
MODULES = {verb: title.split()[0].lower() for title, verbs in GROUPS.items() for verb in verbs}


class LazyGroup(click.Group):
    """A group whose commands live in a module for each of `GROUPS`, imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs in the order in which a user meets them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module and return its command."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"sda_features.cli.{MODULES[cmd_name]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        known = {parameter.name for parameter in command.params}
        command.params += [option for option in _everywhere() if option.name not in known]
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs from `GROUPS`, so that help imports none of them."""
        width = max(map(len, VERBS))
        for title, verbs in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(verb.ljust(width), line) for verb, line in verbs.items()])


def _everywhere() -> list[click.Parameter]:
    """What may stand before a verb or after it; `main` looks for these itself."""
    said = {
        "--verbose": "Show all messages, and where an error came from, as a traceback.",
        "--log-json": "Write messages, errors and progress as JSON, one object a line.",
    }
    return [
        click.Option([name], is_flag=True, expose_value=False, help=help_) for name, help_ in said.items()
    ]


@click.group(
    cls=LazyGroup,
    params=_everywhere(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="sda-features")
def cli() -> None:
    """Item vectors for recommenders: adapt a vision-language model, store vectors in Feast, serve them."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Whatever goes wrong ends in one message and exit status 1, never a traceback.

    Args:
        arguments: none: those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if asked := os.environ.get("_SDA_FEATURES_COMPLETE"):  # the shell completes what is being typed
        sys.exit(shell_complete(cli, {}, "sda-features", "_SDA_FEATURES_COMPLETE", asked))
    verbose, as_json = "--verbose" in words, "--log-json" in words
    started, verb = time.monotonic(), next((word for word in words if word in VERBS), None)
    with log.messages(verbose=verbose, as_json=as_json):
        try:
            status = _run(words, verbose, as_json)
        finally:
            seconds = round(time.monotonic() - started, 3)
            log.logger.info("%s ended", verb, extra={"verb": verb, "seconds": seconds})
    if status is not None:
        sys.exit(status)


def _run(words: list[str], verbose: bool, as_json: bool) -> int | None:
    """Run a command; return the exit status, if it has one."""
    try:
        with cli.make_context("sda-features", words) as ctx:
            cli.invoke(ctx)
        return None
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        if as_json:
            log.logger.error("%s", error.format_message())
        else:
            error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:  # whoever read the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        log.logger.error("%s", explain(error), exc_info=error if verbose else None)
        return 1
