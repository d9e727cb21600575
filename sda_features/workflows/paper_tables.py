"""Recommenders by feature sets by seeds: every cell a run folder, trained once, and the tables made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sda_features.artifacts import atomic_file, check_folder, source_commit, write_json
from sda_features.config import EvaluationSettings, LogSettings, RecommenderSettings
from sda_features.errors import SettingsError
from sda_features.evaluation.metrics import METRICS, mean
from sda_features.evaluation.runs import Difference, Run, compare_runs, read_seeds
from sda_features.evaluation.significance import mean_over_seeds, paired_t_test, seed_pairs_won
from sda_features.report.tables import (
    Row,
    Score,
    ScoreTable,
    differences_table,
    is_significant_over_seeds,
    places,
)
from sda_features.results import Result
from sda_features.workflows.features import load_features
from sda_features.workflows.train import Echo, Training, read_log, say_without_vector

GROUPS = {"all": "overall", "lowest-quintile": "lowest quintile"}  # the others are called what they are
NAMES = {"hit": "H", "ndcg": "N"}  # as the paper's tables abbreviate
Values = NDArray[np.float64]
TABLES = ("table1", "table2", "modality")
TABLE_FILES = {"runs", *(f"{table}.{suffix}" for table in TABLES for suffix in ("json", "md", "tex"))}


@dataclass(frozen=True, eq=False)
class Grid:
    """Finished runs.

    Attributes:
        runs: (model, label of the features) -> a run for each seed, in the order of models and features.
        without_vector: label -> items of the log without any vector.
    """

    runs: dict[tuple[str, str], list[Run]]
    without_vector: dict[str, int]

    @property
    def models(self) -> list[str]:
        """In order."""
        return list(dict.fromkeys(model for model, _ in self.runs))

    @property
    def features(self) -> list[str]:
        """Labels, in order."""
        return list(dict.fromkeys(label for _, label in self.runs))

    @property
    def any_run(self) -> Run:
        """All have data and protocol in common."""
        return next(iter(self.runs.values()))[0]

    @property
    def groups(self) -> dict[str, NDArray[np.bool_]]:
        """Groups of users in which the tables differ; without cold items, warm is everybody."""
        groups = self.any_run.groups
        if "cold" in groups and not groups["cold"].any():
            return {name: members for name, members in groups.items() if name not in ("warm", "cold")}
        return groups

    def values(self, cell: tuple[str, str], metric: str, protocol: str, group: str) -> Values:
        """Of each user of a group, float64 [n], the mean over seeds."""
        runs = self.runs[cell]
        return mean_over_seeds([run.values(metric, protocol) for run in runs])[runs[0].groups[group]]


def train_grid(
    interactions: Path | str,
    output: Path,
    features: Sequence[str],
    settings: Mapping[str, RecommenderSettings],
    seeds: Sequence[int],
    evaluation: EvaluationSettings,
    *,
    log: LogSettings | None = None,
    repo: Path | None = None,
    echo: Echo = lambda line: None,
    progress: bool = True,
) -> Grid:
    """Train every model on every feature set with every seed, or read the run when it is there already.

    Args:
        output: folder; a run lies in `runs/MODEL/FEATURES/seed-SEED`.
        features: see `load_features`.
        settings: model -> its settings; their seed is replaced.
        repo: an applied Feast repo; needed for feature sets.
        echo: prints a line for each run.
        progress: show a bar for each training.

    Raises:
        SettingsError: nothing to train, two feature sets of one label, or `output` holds something else.
        SDAError: a run failed; those that have finished stay and are not trained again.
    """
    log = log or LogSettings()
    check_folder(output, TABLE_FILES, "a folder of earlier tables")
    if not (features and settings and seeds):
        raise SettingsError("Expected at least one model, one feature set and one seed.")
    read = read_log(interactions, log)
    finished: dict[tuple[str, str], list[Run]] = {}
    without_vector: dict[str, int] = {}
    seeds = list(dict.fromkeys(seeds))
    total, number = len(features) * len(settings) * len(seeds), 0
    for name in features:  # outside, so that the vectors of one set at a time are in memory
        found = load_features(name, read.item_ids, repo)
        if found.label in without_vector:
            raise SettingsError(f"Two feature sets are called {found.label!r}; rename one of the files.")
        without_vector[found.label] = found.without_vector
        say_without_vector(found, echo)
        for model, seed in product(settings, seeds):
            number += 1
            seeded = settings[model].model_copy(update={"seed": seed})
            folder = output / "runs" / model / found.label / f"seed-{seed}"
            training = Training(read, log, found, model, seeded, evaluation)
            run = training.run(folder, echo, place=f"[{number}/{total}] ", progress=progress)
            finished.setdefault((model, found.label), []).append(run)
    return Grid({cell: finished[cell] for cell in product(settings, without_vector)}, without_vector)


def score_tables(grid: Grid, *, full: str | None = None) -> list[ScoreTable]:
    """One table for each protocol: models and features by groups of users and metrics.

    The best of a model's column is bold, with a star when it stands out from the second best
    (`is_significant_over_seeds`).

    Args:
        grid: of finished runs.
        full: label of the full model of an ablation; adds to each group the column of the paper's
            Table 2, the mean relative change of the metrics against it.
    """
    run = grid.any_run
    tables = []
    for protocol in run.ranks:
        columns = [
            (GROUPS.get(group, group), name)
            for group in grid.groups
            for name in [*(f"{NAMES[metric]}@{run.cutoff}" for metric in METRICS), *(["Δ"] if full else [])]
        ]
        rows = []
        for model in grid.models:
            for label, scores in _block(grid, model, protocol, full).items():
                rows.append(Row((label,) if full else (model, label), tuple(scores)))
        headers = ("features",) if full else ("model", "features")
        tables.append(
            ScoreTable(_title(grid, protocol, full), headers, tuple(columns), tuple(rows), _note(grid, full))
        )
    return tables


def differences(grid: Grid, ours: str, others: Sequence[str]) -> list[dict[str, Any]]:
    """`ours` against each of `others`, for each model and metric, as rows for JSON and `differences_table`."""
    return [
        {"model": model, "features": ours, "against": other} | difference_row(found)
        for model, other in product(grid.models, others)
        for found in compare_runs(grid.runs[model, ours], grid.runs[model, other])
    ]


def difference_row(found: Difference) -> dict[str, Any]:
    """A difference as one flat row."""
    row = asdict(found)
    comparison: dict[str, Any] = row.pop("comparison")
    return row | comparison


def write_tables(
    output: Path, name: str, grid: Grid, tables: Sequence[ScoreTable], compared: Sequence[Mapping[str, Any]]
) -> str:
    """Write `name`.json (the manifest, every score in it), `name`.md and `name`.tex; return the Markdown."""
    manifest = grid.any_run.manifest
    runs = [(model, label, run) for (model, label), of_cell in grid.runs.items() for run in of_cell]
    write_json(
        output / f"{name}.json",
        {
            "table": name,
            "commit": source_commit(),
            **{key: manifest[key] for key in ("sda_features", "data", "log", "evaluation")},
            "seeds": sorted({run.manifest["settings"]["seed"] for _, _, run in runs}),
            "items_without_vector": grid.without_vector,
            "runs": [_entry(output, *named) for named in runs],
            "tables": [table.json() for table in tables],
            "differences": list(compared),
        },
    )
    markdown = "\n\n".join(table.markdown() for table in tables)
    texts = {".md": markdown, ".tex": "\n\n".join(table.latex() for table in tables)}
    if compared:
        names = ("this", "other")
        texts[".md"] += "\n\n" + differences_table(compared, names, ("model", "features", "against"))
    for suffix, text in texts.items():
        with atomic_file(output / f"{name}{suffix}") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    return markdown


@dataclass(frozen=True)
class Tables(Result):
    """What `make_tables` wrote: the content of the JSON file, and what a terminal shows."""

    content: dict[str, Any]
    shown: str

    def as_dict(self) -> dict[str, Any]:
        """See `Result`."""
        return self.content

    def __str__(self) -> str:
        return self.shown


def make_tables(name: str, output: Path, grid: Grid, *, ours: int, ablation: bool) -> Tables:
    """Write the tables of a grid to `output`; the feature set at `ours` is compared with the others."""
    labels = grid.features
    full = labels[ours]
    compared = differences(grid, full, [label for label in labels if label != full])
    tables = score_tables(grid, full=full if ablation else None)
    shown = write_tables(output, name, grid, tables, compared)
    overall = [
        row for row in compared if row["metric"].startswith("ndcg") and not row["metric"].endswith("quintile")
    ]
    if overall:
        shown += "\n\n" + differences_table(overall, (full, "other"), ("model", "against"))
    shown += f"\n\nwritten  {output / name}.json, .md, .tex; runs in {output / 'runs'}"
    return Tables(json.loads((output / f"{name}.json").read_text(encoding="utf-8")), shown)


@dataclass(frozen=True)
class Comparison(Result):
    """Two folders of runs, user by user.

    Attributes:
        runs: folder -> its seeds, in this order.
        differences: rows for `differences_table`.
    """

    runs: dict[Path, int]
    differences: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """See `Result`."""
        return {"runs": {str(folder): n for folder, n in self.runs.items()}, "differences": self.differences}

    def __str__(self) -> str:
        a, b = [*self.runs, *self.runs][:2]
        names = (a.name, b.name) if a.name != b.name else (str(a), str(b))
        table = differences_table(self.differences, names)
        one = "One seed a side compares two trained models, not what they were trained on."
        return f"{table}\n\n{one}" if min(self.runs.values()) == 1 else table


def compare_folders(a: Path, b: Path, *, seed: int = 0) -> Comparison:
    """Compare the runs of two folders; see `compare_runs`."""
    sides = {folder: read_seeds(folder) for folder in (a, b)}
    rows = [difference_row(found) for found in compare_runs(sides[a], sides[b], seed=seed)]
    return Comparison({folder: len(runs) for folder, runs in sides.items()}, rows)


def _block(grid: Grid, model: str, protocol: str, full: str | None) -> dict[str, list[Score]]:
    """Scores of a model's rows, by label, in the order of the columns."""
    run = grid.any_run
    rows: dict[str, list[Score]] = {label: [] for label in grid.features}
    for group in grid.groups:
        for metric in METRICS:
            name = f"{metric}@{run.cutoff}/{protocol}/{group}"
            users = [grid.values((model, label), metric, protocol, group) for label in rows]
            seeds = [[run.manifest["metrics"][name] for run in grid.runs[model, label]] for label in rows]
            averages = [mean(of_label) for of_label in users]
            ranked = places(averages)
            first = [row for place in (1, 2) for row in range(len(ranked)) if ranked[row] == place][:2]
            p_value, star = _tell_apart([users[row] for row in first], [seeds[row] for row in first])
            for scores, average, of_seeds, place in zip(rows.values(), averages, seeds, ranked, strict=True):
                mark = (star, p_value) if place == 1 else (False, None)
                scores.append(Score(average, _spread(of_seeds), place, *mark))
        if full:
            means = {label: [s.value for s in scores[-len(METRICS) :]] for label, scores in rows.items()}
            for label, scores in rows.items():
                scores.append(Score(_relative_change(means[label], means[full]), percent=True))
    return rows


def _tell_apart(users: Sequence[Values], seeds: Sequence[Sequence[float]]) -> tuple[float | None, bool]:
    """p-value of the best against the second best, and whether it gets the star; of both, users' and seeds' values."""
    if len(users) < 2 or len(users[0]) < 2:
        return None, False
    p_value = paired_t_test(users[0], users[1])[1]
    return p_value, is_significant_over_seeds(p_value, *seed_pairs_won(seeds[0], seeds[1]))


def _relative_change(scores: Sequence[float | None], full: Sequence[float | None]) -> float | None:
    """Mean of x / x_full - 1 (the paper's Delta); None where that is not defined."""
    changes = [x / of_full - 1 for x, of_full in zip(scores, full, strict=True) if x is not None and of_full]
    return sum(changes) / len(changes) if changes and len(changes) == len(scores) else None


def _spread(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return float(np.std(known, ddof=1)) if len(known) > 1 else None


def _title(grid: Grid, protocol: str, full: str | None) -> str:
    run = grid.any_run
    users = {name: int(members.sum()) for name, members in grid.groups.items()}
    of_groups = ", ".join(f"{count:,} {GROUPS.get(name, name)}" for name, count in users.items())
    model = f"{grid.models[0]}, " if full else ""
    return f"{model}ranking {protocol}, split {run.manifest['evaluation']['split']}, users: {of_groups}"


def _note(grid: Grid, full: str | None) -> str:
    seeds = len(next(iter(grid.runs.values())))
    note = f"Mean of {seeds} seeds, ± their standard deviation. " if seeds > 1 else "One seed. "
    note += "Bold: best; underlined: second best; *: the two differ, p < 0.05, paired t-test over users"
    note += ", and in the same direction in all pairs of seeds." if seeds > 1 else "."
    return note + (f" Δ: mean relative change against {full}." if full else "")


def _entry(output: Path, model: str, label: str, run: Run) -> dict[str, Any]:
    """A run as the table's manifest has it."""
    keys = (
        "commit",
        "features",
        "vectors",
        "vectors_version",
        "vectors_sha256",
        "settings",
        "best_epoch",
        "metrics",
    )
    entry = {key: run.manifest.get(key) for key in keys}
    return {"model": model, "label": label, "folder": str(run.folder.relative_to(output)), **entry}
