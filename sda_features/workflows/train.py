"""Vectors of the feature store to a trained recommender, and to a run folder that is made only once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sda_features import __version__
from sda_features.artifacts import check_folder, source_commit
from sda_features.config import EvaluationSettings, LogSettings, RecommenderSettings
from sda_features.errors import SettingsError
from sda_features.evaluation.run_files import MANIFEST, RUN_FILES, read_manifest
from sda_features.evaluation.runs import Run, read_run
from sda_features.logs.interactions import Interactions, k_core, read_interactions
from sda_features.report.tables import metrics_table
from sda_features.results import Result
from sda_features.workflows.features import Features, load_features

if TYPE_CHECKING:
    from sda_features.recommenders.training import TrainResult

NOT_COMPARED = ("device", "threads")  # how fast a run was, not what it found

Echo = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Training:
    """Everything that decides what a run finds: a log and how it was read, vectors, a model, the protocol."""

    interactions: Interactions
    log: LogSettings
    features: Features
    model: str
    settings: RecommenderSettings
    evaluation: EvaluationSettings

    def train(self, progress: bool = True) -> TrainResult:
        """Train and evaluate; errors as for `train_recommender`."""
        from sda_features.recommenders.registry import find_recommender
        from sda_features.recommenders.training import train

        return train(
            self.interactions,
            self.settings,
            self.evaluation,
            self.features.modalities,
            vectors_version=self.features.version,
            recommender=find_recommender(self.model),
            provenance={
                "commit": source_commit(),
                "model": self.model,
                "features": self.features.name,
                "vectors_sha256": self.features.sha256,
                "log": self.log.model_dump(mode="json"),
            },
            progress=progress,
        )

    def run(self, folder: Path, echo: Echo, *, place: str = "", progress: bool = True) -> Run:
        """The run in `folder`: read when it was made of the same inputs, else trained and written.

        Args:
            place: where this run stands among others, e.g. "[3/24] ".
            progress: show a bar on standard error.
        """
        name = f"{place}{self.model}, {self.features.label}, seed {self.settings.seed}"
        differs = self.differs_from(folder)
        if differs:
            check_output(folder, 1)
            echo(f"{name}: training ({'; '.join(differs)})")
            self.train(progress).save(folder)
        run = read_run(folder)
        echo(f"{name}: {_summary(run)}{'' if differs else ' (finished before)'}")
        return run

    def differs_from(self, folder: Path) -> list[str]:
        """What the run in `folder` has not in common with this one; empty: all of it.

        Settings, seed, protocol, log, vectors and the version of this package count; device and
        threads do not.
        """
        if not (folder / MANIFEST).exists():
            return ["not trained yet"]
        manifest = read_manifest(folder)
        inputs: list[tuple[dict[str, Any], dict[str, Any]]] = [  # as they were, as they are
            (manifest, {"sda_features": __version__, "model": self.model}),
            (manifest.get("settings") or {}, self.settings.model_dump(mode="json")),
            (manifest.get("evaluation") or {}, self.evaluation.model_dump(mode="json")),
            (manifest.get("data") or {}, {"sha256": self.interactions.data_hash}),
            (manifest, {"features": self.features.name, "vectors_version": self.features.version}),
            (manifest, {"vectors_sha256": self.features.sha256}),
        ]
        return [
            f"{key}: {_short(before.get(key))} before, {_short(now)} now"
            for before, wanted in inputs
            for key, now in wanted.items()
            if key not in NOT_COMPARED and before.get(key) != now
        ]


def train_recommender(
    interactions: Path | str,
    features: str,
    settings: RecommenderSettings,
    evaluation: EvaluationSettings,
    *,
    model: str = "sasrec",
    log: LogSettings | None = None,
    repo: Path | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train a recommender on a log, with item vectors by name, and evaluate it.

    Args:
        interactions: parquet, CSV or JSONL log, as a path or an fsspec URL.
        features: see `load_features`.
        model: see `find_recommender`.
        repo: an applied Feast repo; needed for a feature set.
        progress: show a bar on standard error.

    Raises:
        InteractionsError, FeatureStoreError, SettingsError: see the message.
        FeatureMismatchError: no item of the log has a vector, or vectors of several versions are mixed.
    """
    log = log or LogSettings()
    read = read_log(interactions, log)
    found = load_features(features, read.item_ids, repo)
    return Training(read, log, found, model, settings, evaluation).train(progress)


def train_seeds(
    interactions: Path | str,
    output: Path,
    features: str,
    settings: Mapping[str, RecommenderSettings],
    seeds: Sequence[int],
    evaluation: EvaluationSettings,
    *,
    log: LogSettings,
    repo: Path | None = None,
    echo: Echo = lambda line: None,
    progress: bool = True,
) -> list[Run]:
    """One model on one feature set, a run for each seed that is not there yet.

    The run lies in `output`, those of several seeds in `output`/seed-SEED. Arguments and errors as
    for `train_grid`.
    """
    ((model, of_model),) = settings.items()
    check_output(output, len(seeds))
    read = read_log(interactions, log)
    training = Training(read, log, load_features(features, read.item_ids, repo), model, of_model, evaluation)
    say_without_vector(training.features, echo)
    runs = []
    for seed in seeds:
        seeded = replace(training, settings=of_model.model_copy(update={"seed": seed}))
        folder = output / f"seed-{seed}" if len(seeds) > 1 else output
        runs.append(seeded.run(folder, echo, progress=progress))
    return runs


@dataclass(frozen=True)
class TrainedRuns(Result):
    """What `train` made: a run for each seed, in folders that are `kept` or are gone."""

    features: str
    seeds: list[int]
    runs: list[Run]
    kept: bool

    def as_dict(self) -> dict[str, Any]:
        """See `Result`; the manifest of the run, or of each."""
        manifests = [run.manifest for run in self.runs]
        return manifests[0] if len(manifests) == 1 else {"runs": manifests}

    def __str__(self) -> str:
        many = len(self.runs) > 1
        labels = [f"{self.features}, seed {seed}" if many else self.features for seed in self.seeds]
        metrics = {label: run.manifest["metrics"] for label, run in zip(labels, self.runs, strict=True)}
        places = [f"run  {run.folder}" for run in self.runs] if self.kept else []
        return "\n".join([metrics_table(metrics), *places])


@dataclass(frozen=True)
class RunMetrics(Result):
    """Metrics of a saved run under a protocol."""

    run: Path
    evaluation: dict[str, Any]
    metrics: dict[str, Any]
    features: str

    def as_dict(self) -> dict[str, Any]:
        """See `Result`."""
        return {"run": self.run, "evaluation": self.evaluation, "metrics": self.metrics}

    def __str__(self) -> str:
        return metrics_table({self.features: self.metrics})


def evaluate_run(
    run: Path,
    changed: Mapping[str, Any],
    interactions: Path | str | None = None,
    content_weight: float | None = None,
) -> RunMetrics:
    """The metrics of a saved run; under a `changed` protocol its test items are ranked again.

    Args:
        changed: fields of `EvaluationSettings`.
        interactions: the log it was trained on; needed to rank again.
        content_weight: of the content score, if it is to be another; see `rank_again`.

    Raises:
        SettingsError: a changed protocol without the log.
    """
    manifest = read_manifest(run)
    metrics, protocol = manifest["metrics"], manifest["evaluation"]
    if changed or content_weight is not None:
        from sda_features.recommenders.rank_again import rank_again

        if interactions is None:
            raise SettingsError(
                "To rank again, name the log with --interactions: it says what users have seen."
            )
        settings = EvaluationSettings.parse(**{**protocol, **changed})
        log = read_log(interactions, LogSettings.parse(**manifest.get("log", {})))
        metrics = rank_again(run, log, settings, content_weight=content_weight).metrics()
        protocol = settings.model_dump(mode="json")
    return RunMetrics(run, protocol, metrics, manifest.get("features", run.name))


def read_log(path: Path | str, settings: LogSettings, *, catalogue: Any = None) -> Interactions:
    """The log of a file, thinned to its k-core if `settings` say so; arguments and errors as `read_interactions`."""
    log = read_interactions(
        path,
        user_column=settings.user_column,
        item_column=settings.item_column,
        time_column=settings.time_column,
        catalogue=catalogue,
    )
    return k_core(log, settings.k_core) if settings.k_core else log


def check_output(output: Path, seeds: int) -> None:
    """Refuse a folder that holds something else than runs; one run, or some in `seed-SEED`.

    Raises:
        SettingsError: naming what is in the way.
    """
    if seeds == 1:
        check_folder(output, RUN_FILES, "an earlier run")
        return
    inside = output.iterdir() if output.is_dir() else ()
    ours = {path.name for path in inside if re.fullmatch(r"seed-\d+", path.name) and path.is_dir()}
    check_folder(output, ours, "a folder of earlier runs")


def say_without_vector(features: Features, echo: Echo) -> None:
    """Print how many items have no vector, if any."""
    if features.without_vector:
        echo(
            f"{features.label}: {features.without_vector:,} of {features.items:,} items have no vector; they are "
            "ranked by their id embedding, or with --fusion replace as an item of which nothing is known"
        )


def _summary(run: Run) -> str:
    name = f"ndcg@{run.cutoff}/full/all"
    epochs = run.manifest["epochs"]
    return (
        f"{name} {run.manifest['metrics'][name]:.4f}, best of {len(epochs)} epochs is {run.manifest['best_epoch']}, "
        f"{sum(epoch['seconds'] for epoch in epochs):.0f} s of training"
    )


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
