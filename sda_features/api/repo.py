"""The door: a Feast repo with its feature sets, its settings file, and trainers that read from it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sda_features.api.calls import Group, call, given, parse
from sda_features.api.settings_file import (
    EffectiveSettings,
    SettingsFile,
    effective_settings,
    read_settings_file,
    write_settings_file,
)
from sda_features.api.vector_set import Table, VectorSet
from sda_features.config import (
    EvaluationSettings,
    LogSettings,
    RecommenderSettings,
    VectorEvaluationSettings,
    recommender_settings,
)

if TYPE_CHECKING:
    from sda_features.feature_store.init import Initialized
    from sda_features.workflows.paper_tables import Tables
    from sda_features.workflows.train import TrainedRuns
    from sda_features.workflows.vectors import Evaluated

RECOMMENDER = Group(RecommenderSettings, skip=("seed",), defaults=False)
TRAINING = (Group(LogSettings), RECOMMENDER, Group(EvaluationSettings, "eval"))
Echo = Callable[[str], None]


class Repo:
    """A Feast repo that defines feature sets; `Repo("shop/feature_repo")["sda"]` is one of them.

    Args:
        path: folder with feature_store.yaml.
        config: a settings file; none: sda-features.toml of the repo, if there is one.
        settings: what such a file said, if it was read before.

    Raises:
        SettingsError: the settings file has something that is not known.
    """

    def __init__(self, path: Table = ".", config: Table | None = None, settings: SettingsFile | None = None):
        self.path = Path(path)
        self.settings = read_settings_file(self.path, config) if settings is None else settings

    def __getitem__(self, feature_set: str) -> VectorSet:
        return VectorSet(self.path, feature_set, self.settings)

    @call()
    def init(
        self,
        *,
        feature_sets: Sequence[str] = ("sda", "vanilla"),
        slots: int = 2,
        entity: str | None = None,
        join_key: str = "item_id",
        source_folder: str = "data/item_embeddings",
        feast_materialize: bool | None = None,
        force: bool = False,
    ) -> Initialized:
        """Add the definitions of item-vector views, and a settings file to fill in."""
        from sda_features.feature_store.init import init_repo

        result = init_repo(
            self.path,
            feature_sets=feature_sets,
            slots=slots,
            entity=entity,
            join_key=join_key,
            source_folder=source_folder,
            feast_materialize=feast_materialize,
            force=force,
        )
        return replace(result, settings=write_settings_file(self.path))

    @call()
    def config(self, command_name: str | None = None, *, feature_set: str = "sda") -> EffectiveSettings:
        """What the settings file sets; of a command every option, its value, and where that comes from."""
        return effective_settings(self.settings, command_name, feature_set)

    @call(*TRAINING)
    def train(
        self,
        interactions: Table,
        *,
        model: str = "sasrec",
        features: str = "id",
        output: Table | None = None,
        preset: str = "sparse",
        seeds: Sequence[int] = (0,),
        progress: bool = True,
        echo: Echo = print,
        **options: Any,
    ) -> TrainedRuns:
        """Train a recommender, once a seed, and measure what users took next."""
        from sda_features.workflows.train import TrainedRuns, train_seeds

        common = self._training(interactions, [model], preset, seeds, progress, echo, options)
        with tempfile.TemporaryDirectory() as temporary:
            runs = train_seeds(output=Path(output or temporary), features=features, **common)
        return TrainedRuns(features, list(seeds), runs, kept=output is not None)

    @call(*TRAINING)
    def table1(
        self,
        interactions: Table,
        *,
        output: Table,
        models: Sequence[str] = ("sasrec", "bert4rec", "vbpr", "slmrec"),
        features: Sequence[str] = ("id", "clip", "vanilla", "sda"),
        preset: str = "sparse",
        seeds: Sequence[int] = (0, 1, 2),
        progress: bool = True,
        echo: Echo = print,
        **options: Any,
    ) -> Tables:
        """Recommenders by feature sets; the last is compared with each of the others (paper, Table 1)."""
        common = self._training(interactions, models, preset, seeds, progress, echo, options)
        return _tables("table1", output, features, common, ours=-1)

    @call(*TRAINING)
    def table2(
        self,
        interactions: Table,
        *,
        output: Table,
        model: str = "sasrec",
        features: Sequence[str] = ("sda", "no_cmsa", "no_moda", "no_soft", "vanilla"),
        preset: str = "sparse",
        seeds: Sequence[int] = (0, 1, 2),
        progress: bool = True,
        echo: Echo = print,
        **options: Any,
    ) -> Tables:
        """One recommender on the feature sets of an ablation, the first the full model (paper, Table 2)."""
        common = self._training(interactions, [model], preset, seeds, progress, echo, options)
        return _tables("table2", output, features, common, ours=0, ablation=True)

    @call(*TRAINING)
    def modality(
        self,
        interactions: Table,
        *,
        output: Table,
        model: str = "slmrec",
        feature_set: str = "sda",
        preset: str = "sparse",
        seeds: Sequence[int] = (0, 1, 2),
        progress: bool = True,
        echo: Echo = print,
        **options: Any,
    ) -> Tables:
        """One recommender on no vectors, on texts, on pictures and on both (paper, Figure 3)."""
        common = self._training(interactions, [model], preset, seeds, progress, echo, options)
        features = ["id", f"{feature_set}-text", f"{feature_set}-image", feature_set]
        return _tables("modality", output, features, common, ours=-1)

    @call(
        Group(VectorEvaluationSettings),
        Group(LogSettings),
        Group(EvaluationSettings, "eval", skip=("negatives", "seed")),
    )
    def evaluate_vectors(
        self,
        interactions: Table,
        *,
        features: Sequence[str] = ("vanilla", "sda"),
        catalog: Table | None = None,
        product_column: str | None = None,
        output: Path | None = None,
        echo: Echo = print,
        **options: Any,
    ) -> Evaluated:
        """What vectors know of a log, without training; the last feature set is compared with the others."""
        from sda_features.artifacts import write_json
        from sda_features.workflows.vectors import Evaluated, evaluate_feature_sets

        settings = parse(VectorEvaluationSettings, options)
        measured = evaluate_feature_sets(
            interactions,
            features,
            settings,
            parse(EvaluationSettings, options, "eval"),
            log=parse(LogSettings, options),
            repo=self.path,
            catalog=catalog,
            product_column=product_column,
            echo=echo,
        )
        found = Evaluated(measured, settings.seed)
        if output is not None:
            write_json(output, found.as_dict())
        return found

    def _training(
        self,
        interactions: Table,
        models: Sequence[str],
        preset: str,
        seeds: Sequence[int],
        progress: bool,
        echo: Echo,
        options: Mapping[str, Any],
    ) -> dict[str, Any]:
        """What all commands that train have in common, for `train_grid` and `train_seeds`."""
        chosen = given(RECOMMENDER, options)
        return {
            "interactions": interactions,
            "settings": {model: recommender_settings(model, preset, **chosen) for model in models},
            "seeds": seeds,
            "evaluation": parse(EvaluationSettings, options, "eval"),
            "log": parse(LogSettings, options),
            "repo": self.path,
            "echo": echo,
            "progress": progress,
        }


def _tables(
    name: str,
    output: Table,
    features: Sequence[str],
    common: dict[str, Any],
    *,
    ours: int,
    ablation: bool = False,
) -> Tables:
    """Train the grid and write its tables to `output`; `ours` is the place of what is compared."""
    from sda_features.workflows.paper_tables import make_tables, train_grid

    grid = train_grid(output=Path(output), features=features, **common)
    return make_tables(name, Path(output), grid, ours=ours, ablation=ablation)
