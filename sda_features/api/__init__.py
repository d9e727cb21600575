"""One call for each command: `Repo` for what a Feast repo has, functions for what needs none.

A call takes the options of its command under their names (docs/cli.md), has the same defaults, reads the
same `sda-features.toml`, and returns a `Result`.
"""
