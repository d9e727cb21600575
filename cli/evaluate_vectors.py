"""`sda-features evaluate-vectors`: what vectors know of a log, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sda_features.api.repo import Repo

from .options import JSON, REPO, names, say, settings_options, show, verb
from .ranges import OutputFile
from .version_options import open_repo


@verb(Repo.evaluate_vectors)
@click.argument("interactions")
@click.option(
    "--features",
    default="vanilla,sda",
    callback=names,
    metavar="A,B,...",
    help="See `train`; the last is compared with each of the others.",
)
@REPO
@click.option("--catalog", help="Catalogue whose items are all ranked.  [default: the items of the log]")
@click.option(
    "--product-column",
    help="Column of the catalogue that is equal for variants of one product: measure other products only.",
)
@click.option("--output", "-o", type=OutputFile(), help="Write everything to this JSON file.")
@settings_options(Repo.evaluate_vectors)
@JSON
def command(repo: Path, as_json: bool, **values: Any) -> None:
    """Measure item vectors on the log INTERACTIONS without training: minutes, no GPU.

    Recall@k of co-occurrences (one session, the next item) by nearest vectors, and Hit@10 and NDCG@10
    of the next item by a decayed mean of the history's vectors; for all users, and for those whose
    item is in the tail or cold, that is, without any training interaction.

    \b
    Example:
      sda-features evaluate-vectors interactions.parquet --features vanilla,sda --repo shop/feature_repo
    """
    show(open_repo(repo).evaluate_vectors(echo=say, **values), as_json)
