"""Metrics of runs as tables, the best and second best of each block marked: Markdown, LaTeX and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from sda_features.results import text_table

Metrics = Mapping[str, float | int | None]

SIGNIFICANT = 0.05  # the paper's level
LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "<": "$<$",
    ">": "$>$",
    **{c: rf"\{c}" for c in "&%$#_{}"},
}


@dataclass(frozen=True)
class Score:
    """A cell.

    Attributes:
        value: what it shows; None: a dash.
        spread: standard deviation over seeds; None: a single seed.
        place: 1 for the best of its block, 2 for the second best.
        significant: whether the best stands out from the second best, see `is_significant_over_seeds`.
        p_value: of the plain paired t-test of the two, on the best alone.
        percent: whether it is a relative change.
    """

    value: float | None
    spread: float | None = None
    place: Literal[1, 2] | None = None
    significant: bool = False
    p_value: float | None = None
    percent: bool = False

    @property
    def number(self) -> str:
        """The value without marks."""
        if self.value is None:
            return "-"
        return f"{self.value:+.2%}" if self.percent else f"{self.value:.4f}"


@dataclass(frozen=True)
class Row:
    """A line of a table: labels, then a score a column. Rows with the same first label form a block."""

    labels: tuple[str, ...]
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class ScoreTable:
    """A table of scores.

    Attributes:
        title: what is ranked how, for the caption.
        labels: headers of the label columns.
        columns: group of users and metric of each score.
        rows: in order.
        note: what the marks mean.
    """

    title: str
    labels: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    note: str

    def markdown(self) -> str:
        """Title, table and note; best bold, second best underlined."""
        headers = [*self.labels, *(f"{group} {metric}" for group, metric in self.columns)]
        cells = [[*row.labels, *map(_markdown_score, row.scores)] for row in self.rows]
        aligned = ["left"] * len(self.labels) + ["right"] * len(self.columns)
        table = text_table(cells, headers, aligned)
        return f"**{self.title}**\n\n{table}\n\n{self.note}"

    def latex(self) -> str:
        """A `table` that needs the package booktabs."""
        spans, rules, start = [], [], len(self.labels) + 1
        for name, run in groupby(group for group, _ in self.columns):
            width = len(list(run))
            spans.append(rf"\multicolumn{{{width}}}{{c}}{{{_escape(name)}}}")
            rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
            start += width
        lines = [
            r"\begin{table}",
            rf"\caption{{{_escape(self.title)}. {_escape(self.note)}}}",
            rf"\begin{{tabular}}{{{'l' * len(self.labels)}{'r' * len(self.columns)}}}",
            r"\toprule",
            _latex_line([""] * len(self.labels) + spans),
            " ".join(rules),
            _latex_line([*map(_escape, self.labels), *(_escape(metric) for _, metric in self.columns)]),
        ]
        for first, block in groupby(self.rows, key=lambda row: row.labels[0] if len(row.labels) > 1 else ""):
            lines.append(r"\midrule")
            for number, row in enumerate(block):
                labels = ["" if number and first else row.labels[0], *row.labels[1:]]
                lines.append(_latex_line([*map(_escape, labels), *map(_latex_score, row.scores)]))
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])

    def json(self) -> dict[str, Any]:
        """Title, note and rows; each score under `GROUP METRIC`."""
        return {
            "title": self.title,
            "note": self.note,
            "rows": [
                {
                    **dict(zip(self.labels, row.labels, strict=True)),
                    "scores": {
                        f"{group} {metric}": {
                            name: value for name, value in vars(score).items() if name != "percent"
                        }
                        for (group, metric), score in zip(self.columns, row.scores, strict=True)
                    },
                }
                for row in self.rows
            ],
        }


def places(values: Sequence[float | None]) -> list[Literal[1, 2] | None]:
    """1 for the largest values, 2 for the next largest, None for all others and for None; equals share a place."""
    best = sorted({value for value in values if value is not None}, reverse=True)
    if len(best) < 2:  # one value, or all the same: nothing stands out
        return [None] * len(values)
    return [1 if value == best[0] else 2 if value == best[1] else None for value in values]


def is_significant(p_value: float | None) -> bool:
    """Whether a p-value is below `SIGNIFICANT`."""
    return p_value is not None and p_value < SIGNIFICANT


def is_significant_over_seeds(p_value: float | None, won: int, pairs: int) -> bool:
    """The star of all tables: users agree, and so do seeds.

    Args:
        p_value: of a paired t-test over users, each the mean over seeds; `is_significant`.
        won: pairs of seeds in which one side is better; all or none, so that no choice of a seed
            turns the order round.
        pairs: all pairs; with a single seed a side that is one, and the test decides.
    """
    return is_significant(p_value) and won in (0, pairs)


def metrics_table(runs: Mapping[str, Metrics]) -> str:
    """One row for each run, protocol and group of users; one column for each metric.

    Args:
        runs: name -> metrics as `Evaluation.metrics` names them: `users/GROUP`, `METRIC/PROTOCOL/GROUP`.

    Returns:
        Markdown; a group without users has dashes.
    """
    first = next(iter(runs.values()))
    names = [name.split("/") for name in first if name.count("/") == 2]
    if not first.get("users/cold"):  # then warm is everybody
        names = [name for name in names if name[2] not in ("warm", "cold")]
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
    return text_table(rows, headers)


def measures_table(metrics: Mapping[str, Mapping[str, float | None]], users: Mapping[str, int]) -> str:
    """One row for each metric, one column for each of `metrics`' labels; metrics without users are left out.

    Args:
        metrics: label -> metric -> mean.
        users: metric -> users.

    Returns:
        Markdown.
    """
    rows = [
        [name, f"{count:,}", *(formatted(of_label[name], ".4f") for of_label in metrics.values())]
        for name, count in users.items()
        if count
    ]
    aligned = ["left", *["right"] * (len(metrics) + 1)]
    headers = ["metric", "users", *metrics]
    return text_table(rows, headers, aligned)


def differences_table(
    rows: Sequence[Mapping[str, Any]], names: tuple[str, str], labels: Sequence[str] = ()
) -> str:
    """Differences of two settings, metric by metric.

    Args:
        rows: each with `metric`, `users`, `ours`, `theirs`, `difference`, `low`, `high`, `p_value`, `won`,
            `pairs`, and `labels`.
        names: headers of `ours` and `theirs`.
        labels: further columns that come first.

    Returns:
        Markdown.
    """
    headers = [*labels, "metric", "users", *names, "difference", "95% interval", "p (paired t)", "seeds won"]
    cells = [
        [
            *(row[label] for label in labels),
            row["metric"],
            f"{row['users']:,}",
            formatted(row["ours"], ".4f"),
            formatted(row["theirs"], ".4f"),
            formatted(row["difference"], "+.4f"),
            "-" if row["low"] is None else f"{row['low']:+.4f} to {row['high']:+.4f}",
            formatted(row["p_value"], ".2g")
            + (r"\*" if is_significant_over_seeds(row["p_value"], row["won"], row["pairs"]) else ""),
            f"{row['won']} of {row['pairs']}" if row["pairs"] else "-",
        ]
        for row in rows
    ]
    aligned = ["left"] * (len(labels) + 1) + ["right"] * 7
    return text_table(cells, headers, aligned)


def formatted(value: float | None, form: str) -> str:
    """A number in the format `form`, or a dash."""
    return "-" if value is None else format(value, form)


def _markdown_score(score: Score) -> str:
    marked = {1: f"**{score.number}**", 2: f"<u>{score.number}</u>", None: score.number}[score.place]
    star = r"\*" if score.significant else ""
    spread = "" if score.spread is None else f" ±{score.spread:.4f}"
    return marked + star + spread


def _latex_score(score: Score) -> str:
    number = _escape(score.number)
    marked = {1: rf"\textbf{{{number}}}", 2: rf"\underline{{{number}}}", None: number}[score.place]
    spread = "" if score.spread is None else rf" {{\tiny $\pm${score.spread:.4f}}}"
    return marked + ("$^{*}$" if score.significant else "") + spread


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _escape(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)
