"""Write docs/cli.md from the commands' own help, so that the reference cannot fall behind."""

from __future__ import annotations

from pathlib import Path

import click

from sda_features.cli.main import VERBS, cli


def render() -> str:
    """The reference as Markdown."""
    parts = ["# Commands", "", "Made by `make docs` from `sda-features VERB --help`.", ""]
    with click.Context(cli, info_name="sda-features", **cli.context_settings) as root:
        for verb in VERBS:
            command = cli.get_command(root, verb)
            assert command is not None
            context = click.Context(command, info_name=verb, parent=root, **command.context_settings)
            parts += [f"## sda-features {verb}", "", "```text", command.get_help(context), "```", ""]
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(render(), encoding="utf-8")
