"""Metrics of several runs as one Markdown table."""

from __future__ import annotations

from collections.abc import Mapping

from tabulate import tabulate

Metrics = Mapping[str, float | int | None]


def metrics_table(runs: Mapping[str, Metrics]) -> str:
    """One row for each run, protocol and group of users; one column for each metric.

    Args:
        runs: name -> metrics as `Evaluation.metrics` names them: `users/GROUP`, `METRIC/PROTOCOL/GROUP`.

    Returns:
        Markdown; a group without users has dashes.
    """
    first = next(iter(runs.values()))
    names = [name.split("/") for name in first if name.count("/") == 2]
    metrics = list(dict.fromkeys(metric for metric, _, _ in names))
    rows = [
        [
            protocol,
            group,
            run,
            values[f"users/{group}"],
            *(values[f"{m}/{protocol}/{group}"] for m in metrics),
        ]
        for protocol, group in dict.fromkeys((protocol, group) for _, protocol, group in names)
        for run, values in runs.items()
    ]
    headers = ["ranking", "users whose item is in", "features", "users", *metrics]
    return tabulate(rows, headers, tablefmt="github", floatfmt=".4f", missingval="-")
