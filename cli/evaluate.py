"""Verbs that evaluate: vectors by themselves, recommenders on them, the tables of the paper."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sda_features.api import functions
from sda_features.api.repo import Repo
from sda_features.config import PRESETS

from .options import JSON, REPO, Decorated, open_repo, say, settings_options, show, verb
from .ranges import FOLDER, NAMES, PATH, SEEDS, FiniteRange, OutputFile, Seeds

PRESET = click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="Settings of a model that no option gives: sparse as Amazon reviews, dense as MovieLens.",
)
RUNS = click.option(
    "--seeds", type=Seeds(), help="Seeds of initialisation, order, dropout and negatives; a run for each."
)


def training_options(call: Any) -> Callable[[Decorated], Decorated]:
    """Decorate a command with what all calls that train have: log, repo, preset, seeds, settings."""

    def decorate(function: Decorated) -> Decorated:
        function = settings_options(call)(JSON(function))
        return click.argument("interactions")(REPO(PRESET(RUNS(function))))

    return decorate


@verb(Repo.evaluate_vectors)
@click.argument("interactions")
@click.option("--features", type=NAMES, help="See `train`; the last is compared with each of the others.")
@REPO
@click.option("--catalog", help="Catalogue whose items are all ranked.  [default: the items of the log]")
@click.option(
    "--product-column",
    help="Column of the catalogue that is equal for variants of one product: measure other products only.",
)
@click.option("--output", "-o", type=OutputFile(), help="Write everything to this JSON file.")
@settings_options(Repo.evaluate_vectors)
@JSON
def evaluate_vectors(repo: Path, as_json: bool, **values: Any) -> None:
    """Measure item vectors on the log INTERACTIONS without training: minutes, no GPU.

    Recall@k of co-occurrences (one session, the next item) by nearest vectors, and Hit@10 and NDCG@10
    of the next item by a decayed mean of the history's vectors; for all users, and for those whose
    item is in the tail or cold, that is, without any training interaction.

    \b
    Example:
      sda-features evaluate-vectors interactions.parquet --features vanilla,sda --repo shop/feature_repo
    """
    show(open_repo(repo).evaluate_vectors(echo=say, **values), as_json)


@verb(Repo.train)
@click.option("--model", help="sasrec, bert4rec, vbpr, slmrec, or one that an installed package adds.")
@click.option(
    "--features",
    help="id: no vectors; a feature set of the repo: sda, vanilla, clip, ...; one modality of it: sda-text, "
    "sda-image; both in one space: sda-shared; or a parquet file with item_id and columns of vectors.",
)
@click.option("--output", "-o", type=FOLDER, help="Run folder for weights and ranks.")
@training_options(Repo.train)
def train(repo: Path, as_json: bool, **values: Any) -> None:
    """Train a recommender on the log INTERACTIONS and measure Hit@10 and NDCG@10 on what users took next.

    The ranking is reported among 100 sampled negatives and over the full catalogue, for all users
    and for those whose item is in the long tail. A run that OUTPUT holds already is not trained
    again; several seeds lie in OUTPUT/seed-SEED.

    \b
    Example:
      sda-features train interactions.parquet --features sda --repo shop/feature_repo -o runs/sasrec-sda
    """
    show(open_repo(repo).train(progress=not as_json, echo=say, **values), as_json)


@verb(functions.evaluate)
@click.argument("run", type=PATH)
@click.option("--interactions", help="The log the run was trained on; needed to rank again.")
@click.option(
    "--content-weight",
    type=FiniteRange(0, 1e6),
    help="Another weight of the content score, 0: the recommender alone.",
)
@settings_options(functions.evaluate)
@JSON
def evaluate(as_json: bool, **values: Any) -> None:
    """Print the metrics of the run folder RUN, or rank its test items again under another protocol.

    Without options these are the metrics that were stored. A cut-off, a number of negatives, their
    seed, another limit of the tail or another weight of the content score rank again, from the
    factors in the run folder: no training, no vectors, but the same log. Nothing is written.

    \b
    Example:
      sda-features evaluate runs/sasrec-sda --negatives 99 --interactions interactions.parquet
    """
    show(functions.evaluate(**values), as_json)


@verb(functions.compare)
@click.argument("run_a", type=PATH)
@click.argument("run_b", type=PATH)
@click.option("--seed", type=SEEDS, help="Seed of the bootstrap.")
@JSON
def compare(as_json: bool, **values: Any) -> None:
    """Compare RUN_A with RUN_B user by user: paired t-test and paired bootstrap interval of each metric.

    A run is a run folder, or a folder with run folders that are seeds of one setting; then each user
    counts with the mean over seeds. Runs of different data, split or protocol are refused. p-values
    are not corrected for the number of metrics.

    \b
    Example:
      sda-features compare runs/sasrec-sda runs/sasrec-id
    """
    show(functions.compare(**values), as_json)


@verb(Repo.table1)
@click.option("--output", "-o", required=True, type=FOLDER, help="Folder for runs and tables.")
@click.option("--models", type=NAMES, help="Recommenders.")
@click.option("--features", type=NAMES, help="See `train`; the last is compared with each of the others.")
@training_options(Repo.table1)
def table1(repo: Path, as_json: bool, **values: Any) -> None:
    """Train every recommender on every feature set with every seed, and print the table (paper, Table 1).

    One table for each ranking. Writes OUTPUT/table1.json (manifest with every score), .md and .tex.
    A run that has finished is not trained again, so a stopped command goes on where it was.

    \b
    Example:
      sda-features table1 interactions.parquet --features id,vanilla,sda --repo shop/feature_repo -o table1
    """
    show(open_repo(repo).table1(progress=not as_json, echo=say, **values), as_json)


@verb(Repo.table2)
@click.option("--output", "-o", required=True, type=FOLDER, help="Folder for runs and tables.")
@click.option("--model", help="Recommender, see `train`.")
@click.option(
    "--features",
    required=True,
    type=NAMES,
    help="The full model's feature set, then one for each ablation, see `train`.",
)
@training_options(Repo.table2)
def table2(repo: Path, as_json: bool, **values: Any) -> None:
    """Train a recommender on each feature set of an ablation, and print the table (paper, Table 2).

    The column Δ is the mean relative change of Hit and NDCG against the full model. Writes
    OUTPUT/table2.json (manifest with every score), .md and .tex. Runs that have finished are not
    trained again.

    \b
    Example:
      sda-features table2 interactions.parquet --features sda,no_cmsa,no_moda,no_soft,vanilla -o table2
    """
    show(open_repo(repo).table2(progress=not as_json, echo=say, **values), as_json)


@verb(Repo.modality)
@click.option("--output", "-o", required=True, type=FOLDER, help="Folder for runs and tables.")
@click.option("--model", help="Recommender, see `train`.")
@click.option("--feature-set", help="Feature set of the repo.")
@training_options(Repo.modality)
def modality(repo: Path, as_json: bool, **values: Any) -> None:
    """Train a recommender on no vectors, on texts, on images and on both, and print the table (paper, Fig. 3).

    Writes OUTPUT/modality.json (manifest with every score), .md and .tex. Runs that have finished are
    not trained again.

    \b
    Example:
      sda-features modality interactions.parquet --model slmrec --repo shop/feature_repo -o modality
    """
    show(open_repo(repo).modality(progress=not as_json, echo=say, **values), as_json)
