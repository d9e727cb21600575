"""Saved runs as results: manifest and per-user ranks, read without the model, and compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sda_features.errors import CheckpointError, SettingsError
from sda_features.evaluation.metrics import METRICS, mean
from sda_features.evaluation.run_files import MANIFEST, RANKS, read_manifest, run_content
from sda_features.evaluation.significance import Comparison, compare, mean_over_seeds, seed_pairs_won


@dataclass(frozen=True, eq=False)
class Run:
    """What a run folder says of the test.

    Attributes:
        folder: where it lies.
        manifest: see `TrainResult.manifest`.
        user_ids: str [T], who was evaluated.
        item_ids: str [T], their targets.
        ranks: protocol -> float64 [T], from 1.
        groups: group -> bool [T].
    """

    folder: Path
    manifest: dict[str, Any]
    user_ids: NDArray[np.str_]
    item_ids: NDArray[np.str_]
    ranks: dict[str, NDArray[np.float64]]
    groups: dict[str, NDArray[np.bool_]]

    @cached_property
    def cutoff(self) -> int:
        """k of the metrics."""
        return int(self.manifest["evaluation"]["cutoff"])

    def values(self, metric: str, protocol: str) -> NDArray[np.float64]:
        """`hit` or `ndcg` of each user, float64 [T]."""
        return METRICS[metric](self.ranks[protocol], self.cutoff)


@dataclass(frozen=True)
class Difference:
    """One metric of two settings.

    Attributes:
        metric: as metrics are named, e.g. `ndcg@10/full/tail`.
        ours: mean over users and seeds; None for a group without users.
        theirs: likewise.
        comparison: of the users' values, each the mean over seeds.
        pairs: pairs of a seed of ours and one of theirs; 0 for a group without users.
        won: pairs in which ours has the higher mean.
    """

    metric: str
    ours: float | None
    theirs: float | None
    comparison: Comparison
    pairs: int
    won: int


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        CheckpointError: not a run folder, or damaged.
    """
    manifest = read_manifest(folder)
    with run_content(folder, manifest, [RANKS]), np.load(folder / RANKS, allow_pickle=False) as arrays:
        parts: dict[str, dict[str, NDArray[Any]]] = {"rank": {}, "group": {}}
        for name in arrays.files:
            kind, _, rest = name.partition("/")
            if rest:
                parts[kind][rest] = arrays[name]
        run = Run(folder, manifest, arrays["user_ids"], arrays["item_ids"], parts["rank"], parts["group"])
        if not (run.ranks and run.groups):
            raise ValueError(f"{RANKS} holds no ranks or no groups")
        columns = [run.user_ids, run.item_ids, *run.ranks.values(), *run.groups.values()]
        if {column.shape for column in columns} != {(len(run.user_ids),)}:
            raise ValueError(f"the arrays of {RANKS} differ in length")
    return run


def read_seeds(folder: Path) -> list[Run]:
    """The run in a folder, or those in its subfolders, which are seeds of one setting.

    Raises:
        CheckpointError: no run there, or one is damaged.
        SettingsError: the subfolders differ in more than their seed.
    """
    if (folder / MANIFEST).exists():
        return [read_run(folder)]
    runs = [read_run(path.parent) for path in sorted(folder.glob(f"*/{MANIFEST}"))]
    if not runs:
        raise CheckpointError(
            f"Expected a run folder, as `sda-features train` writes it, or one of several; got {folder}."
        )
    check_comparable(runs)
    settings = {json.dumps(_setting(run.manifest), sort_keys=True) for run in runs}
    if len(settings) > 1:
        raise SettingsError(
            f"The {len(runs)} runs in {folder} are not seeds of one setting; name one of them: "
            f"{', '.join(run.folder.name for run in runs)}."
        )
    return runs


def check_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs of different data, split or protocol: their users have no pairs.

    Raises:
        SettingsError: naming the difference.
    """
    first = runs[0]
    for other in runs[1:]:
        ours, theirs = (
            {"data": run.manifest["data"]["sha256"][:12], **run.manifest["evaluation"]}
            for run in (first, other)
        )
        faults = [
            f"{name}: {ours.get(name)!r} and {theirs.get(name)!r}"
            for name in dict.fromkeys(["data", *sorted({*ours, *theirs})])
            if ours.get(name) != theirs.get(name)
        ]
        if not faults and not (
            np.array_equal(first.user_ids, other.user_ids) and np.array_equal(first.item_ids, other.item_ids)
        ):
            faults = ["other users or targets were evaluated"]
        if faults:
            raise SettingsError(
                f"{first.folder} and {other.folder} cannot be compared: {'; '.join(faults)}. "
                "Train both on one log under one protocol, or re-rank one with `sda-features evaluate`."
            )


def compare_runs(ours: Sequence[Run], theirs: Sequence[Run], *, seed: int = 0) -> list[Difference]:
    """Every metric, protocol and group of two settings, user by user.

    Args:
        ours: seeds of one setting.
        theirs: seeds of another.
        seed: of the bootstrap.

    Raises:
        SettingsError: see `check_comparable`.
    """
    check_comparable([*ours, *theirs])
    first = ours[0]
    names = [(metric, protocol) for protocol in first.ranks for metric in METRICS]
    values = [  # of both sides, a matrix [T, names] a seed
        [np.stack([run.values(*name) for name in names], axis=1) for run in runs] for runs in (ours, theirs)
    ]
    left, right = (mean_over_seeds(of_seeds) for of_seeds in values)
    found: dict[str, Difference] = {}
    for group, members in first.groups.items():
        comparisons = compare(left[members], right[members], seed=seed)
        for column, (metric, protocol) in enumerate(names):
            name = f"{metric}@{first.cutoff}/{protocol}/{group}"
            means = [mean(side[members, column]) for side in (left, right)]
            seeds = [[mean(matrix[members, column]) or 0 for matrix in of_seeds] for of_seeds in values]
            won, pairs = seed_pairs_won(*seeds) if members.any() else (0, 0)
            found[name] = Difference(name, means[0], means[1], comparisons[column], pairs, won)
    order = [f"{m}@{first.cutoff}/{p}/{g}" for p in first.ranks for g in first.groups for m in METRICS]
    return [found[name] for name in order]


def _setting(manifest: dict[str, Any]) -> dict[str, Any]:
    """What seeds of one setting have in common."""
    settings = {
        name: value
        for name, value in manifest["settings"].items()
        if name not in ("seed", "device", "threads")
    }
    keys = ("recommender", "features", "vectors", "vectors_version", "vectors_sha256")
    return {"settings": settings, **{key: manifest.get(key) for key in keys}}
