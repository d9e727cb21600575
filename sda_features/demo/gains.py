"""What adaptation gains on the generated shop: the vectors by themselves, and SASRec trained on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sda_features.config import EvaluationSettings, RecommenderSettings, VectorEvaluationSettings
from sda_features.evaluation.runs import compare_runs, read_run
from sda_features.report.tables import differences_table
from sda_features.results import text_table

# Unadapted vectors twice: side by side, which is how they are best used, and in one space as the adapted ones.
VECTORS = ("vanilla", "vanilla-shared", "sda-shared")
OURS = VECTORS[-1]
ALONE, TRAINED = "vectors alone", "SASRec"  # what is measured
METRICS = {
    "": "ndcg@10/full/all",
    " of 101": "ndcg@10/sampled-100/all",
    " of 101, tail": "ndcg@10/sampled-100/tail",
}
RECOMMENDER = {
    "epochs": 20,
    "patience": 3,
    "learning_rate": 5e-3,
    "dropout": 0.2,
    "max_length": 20,
    "loss": "ce",
    "fusion": "replace",
    "content_weight": "auto",
}


@dataclass(frozen=True)
class Gains:
    """NDCG@10 in the whole catalogue, and among 100 others.

    Attributes:
        users: group -> how many.
        scores: `ALONE` or `TRAINED` -> features -> metric -> mean over users.
        differences: `OURS` against each of the others, paired over users, as rows for `differences_table`.
    """

    users: dict[str, int]
    scores: dict[str, dict[str, Mapping[str, Any]]]
    differences: list[dict[str, Any]]

    def tables(self, recall: Mapping[str, float | None]) -> str:
        """Scores by features, then differences; `recall` is text-to-image R@10 by feature set."""
        headers = [f"{name}: NDCG@10{kind}" for name in self.scores for kind in METRICS]
        columns = [(of, metric) for of in self.scores.values() for metric in METRICS.values()]
        rows = [
            [
                features,
                recall.get(features.partition("-")[0]),
                *(of.get(features, {}).get(metric) for of, metric in columns),
            ]
            for features in ("id", *VECTORS)
        ]
        compared = differences_table(self.differences, (OURS, "other"), ("measured", "against"))
        return f"{text_table(rows, ['features', 'text->image R@10', *headers])}\n\n{compared}"


def measure(
    interactions: Path,
    repo: Path,
    runs: Path,
    echo: Callable[[str], None],
    *,
    seed: int = 0,
    progress: bool = True,
) -> Gains:
    """Evaluate the vectors in `repo`, train SASRec on each into `runs`, compare user by user."""
    from sda_features.workflows import train_recommender
    from sda_features.workflows.paper_tables import difference_row
    from sda_features.workflows.vectors import evaluate_feature_sets

    evaluation = EvaluationSettings()
    report = evaluate_feature_sets(interactions, VECTORS, VectorEvaluationSettings(), evaluation, repo=repo)
    found = ", ".join(f"{name} {report.metrics()[name][METRICS[' of 101']]:.4f}" for name in VECTORS)
    echo(f"6. evaluate     vectors alone, NDCG@10 of 101: {found}")
    settings = RecommenderSettings.parse(**RECOMMENDER, seed=seed)
    for features in ("id", *VECTORS):
        result = train_recommender(interactions, features, settings, evaluation, repo=repo, progress=progress)
        result.save(runs / f"sasrec-{features}")
        best = f"best of {len(result.epochs)} epochs is {result.best_epoch}"
        echo(f"7. train        SASRec on {features}: {best}")
    trained = {features: read_run(runs / f"sasrec-{features}") for features in ("id", *VECTORS)}
    rows = [{"measured": ALONE, **row} for row in report.differences(OURS) if row["against"] in VECTORS]
    for features in ("id", *VECTORS[:-1]):
        rows += [
            {"measured": TRAINED, "against": features, **difference_row(found)}
            for found in compare_runs([trained[OURS]], [trained[features]])
        ]
    metrics = {features: run.manifest["metrics"] for features, run in trained.items()}
    return Gains(
        users={name: int(members.sum()) for name, members in trained[OURS].groups.items()},
        scores={ALONE: {**report.metrics()}, TRAINED: metrics},
        differences=[row for row in rows if row["metric"] in METRICS.values()],
    )
