"""`evaluate-vectors`: what feature sets know of a log, without training; compared with each other, user by user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from sda_features.config import EvaluationSettings, LogSettings, VectorEvaluationSettings
from sda_features.errors import CatalogError, SettingsError
from sda_features.evaluation.item_vectors import Measure, evaluate_popularity, evaluate_vectors
from sda_features.evaluation.metrics import mean
from sda_features.evaluation.significance import compare
from sda_features.logs.splits import split_interactions
from sda_features.offline.schema import ITEM_ID
from sda_features.report.tables import differences_table, measures_table
from sda_features.results import Result
from sda_features.tables.cells import ID
from sda_features.tables.files import open_table
from sda_features.workflows.features import IDS_ALONE, load_features
from sda_features.workflows.train import Echo, read_log, say_without_vector

POPULARITY = "popularity"
GROUPS = ("all", "tail", "cold")  # whose differences are shown


@dataclass(frozen=True, eq=False)
class VectorReport:
    """Measures of several feature sets on one log.

    Attributes:
        measures: label -> measures, those of `POPULARITY` first.
        manifest: settings, and hashes of log and vectors.
    """

    measures: dict[str, list[Measure]]
    manifest: dict[str, Any]

    def metrics(self) -> dict[str, dict[str, float | None]]:
        """Label -> name of the metric -> its mean over users."""
        return {
            label: {measure.name: mean(measure.values) for measure in of_label}
            for label, of_label in self.measures.items()
        }

    def users(self) -> dict[str, int]:
        """Name of the metric -> its users."""
        return {measure.name: len(measure.users) for measure in next(iter(self.measures.values()))}

    def differences(self, ours: str, *, seed: int = 0) -> list[dict[str, Any]]:
        """`ours` against every other label, metric by metric, as rows for `differences_table`."""
        rows = []
        for label, theirs in self.measures.items():
            for measure, other in zip(self.measures[ours], theirs, strict=True) if label != ours else ():
                (found,) = compare(measure.values[:, None], other.values[:, None], seed=seed)
                rows.append(
                    {
                        "features": ours,
                        "against": label,
                        "metric": measure.name,
                        "ours": mean(measure.values),
                        "theirs": mean(other.values),
                        "won": 0,  # nothing was trained, so there are no seeds
                        "pairs": 0,
                        **asdict(found),
                    }
                )
        return rows


@dataclass(frozen=True)
class Evaluated(Result):
    """A report and the comparison of its last feature set with the others; `seed` is of the bootstrap."""

    report: VectorReport
    seed: int

    @cached_property
    def differences(self) -> list[dict[str, Any]]:
        """The last feature set against every other."""
        return self.report.differences(self._ours, seed=self.seed)

    @property
    def _ours(self) -> str:
        return list(self.report.measures)[-1]

    def as_dict(self) -> dict[str, Any]:
        """See `Result`."""
        measured = {"users": self.report.users(), "metrics": self.report.metrics()}
        return {**self.report.manifest, **measured, "differences": self.differences}

    def __str__(self) -> str:
        shown = [
            row
            for row in self.differences
            if row["users"] and row["metric"].endswith(GROUPS) and not row["metric"].startswith("hit")
        ]
        measures = measures_table(self.report.metrics(), self.report.users())
        compared = differences_table(shown, (self._ours, "other"), ("against",))
        note = "p-values are of paired t-tests over users and are not corrected for their number."
        return f"{measures}\n\n{compared}\n\n{note}"


def evaluate_feature_sets(
    interactions: Path | str,
    features: Sequence[str],
    settings: VectorEvaluationSettings,
    evaluation: EvaluationSettings,
    *,
    log: LogSettings | None = None,
    repo: Path | None = None,
    catalog: Path | str | None = None,
    product_column: str | None = None,
    echo: Echo = lambda line: None,
) -> VectorReport:
    """Measure each feature set, and popularity beside them.

    Args:
        features: see `load_features`.
        evaluation: the split, the cut-off and the limit of the tail.
        repo: an applied Feast repo; needed for feature sets.
        catalog: its items are all ranked, also those without interactions; none: the items of the log.
        product_column: of the catalogue, equal for the variants of one product, see `evaluate_vectors`.

    Raises:
        SettingsError: ids alone are no vectors, one label twice, or a product column without a catalogue.
        CatalogError: the catalogue lacks a column.
        InteractionsError, FeatureMismatchError: see `read_log` and `load_features`.
    """
    log = log or LogSettings()
    if IDS_ALONE in features:
        raise SettingsError("`id` has no vectors to evaluate; `train` measures a recommender on ids alone.")
    if product_column and catalog is None:
        raise SettingsError(f"To read {product_column!r}, name the catalogue with --catalog.")
    ids, codes = _products(catalog, product_column) if catalog is not None else (None, None)
    read = read_log(interactions, log, catalogue=ids)
    products = None if codes is None else _by_item(read.item_ids, ids, codes)
    split = split_interactions(read, evaluation)
    measures = {POPULARITY: evaluate_popularity(split, settings, evaluation, products=products)}
    vectors = {}
    for name in features:
        found = load_features(name, read.item_ids, repo)
        if found.label in measures:
            raise SettingsError(f"Two feature sets are called {found.label!r}; rename one of the files.")
        say_without_vector(found, echo)
        assert found.modalities is not None
        measures[found.label] = evaluate_vectors(
            found.modalities, split, settings, evaluation, products=products
        )
        vectors[found.label] = {
            "features": name,
            "version": found.version,
            "sha256": found.sha256,
            "without_vector": found.without_vector,
        }
    manifest = {
        "settings": settings.model_dump(mode="json"),
        "evaluation": evaluation.model_dump(mode="json"),
        "log": log.model_dump(mode="json"),
        "data": {
            "sha256": read.data_hash,
            "users": read.user_count,
            "items": read.item_count,
            "interactions": len(read.items),
            "held_out": int(split.held.sum()),
        },
        "product_column": product_column,
        "vectors": vectors,
    }
    return VectorReport(measures, manifest)


def _products(catalog: Path | str, column: str | None) -> tuple[Any, Any]:
    """Item ids of a catalogue, Arrow strings [n], and with `column` its values as strings [n]."""
    opened = open_table(catalog, "catalogue", CatalogError)
    columns = [ITEM_ID, *([column] if column else [])]
    missing = [name for name in columns if name not in opened.columns]
    if missing:
        raise CatalogError(
            f"{catalog}: no column {missing[0]!r}; the catalogue has {', '.join(opened.columns)}."
        )
    table = opened.read(dict.fromkeys(columns, ID))
    return table[ITEM_ID].combine_chunks(), table[column].combine_chunks() if column else None


def _by_item(item_ids: Any, ids: Any, products: Any) -> NDArray[np.int64]:
    """Product of each item code, int64 [I + 1]; an item without one is a product of its own, as is padding."""
    of_item = products.take(pc.index_in(item_ids, ids))
    numbers = pc.index_in(of_item, pc.unique(products.drop_null())).fill_null(-1).to_numpy()
    alone = np.arange(len(numbers)) + len(products)
    return np.concatenate([[0], np.where(numbers < 0, alone, numbers) + 1])
