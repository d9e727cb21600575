"""Jobs that join parts which do not know each other: encoder to feature store, feature store to trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pyarrow import Array
from tqdm import tqdm

from sda_features.catalog import Catalog, CatalogReport, Item
from sda_features.config import AdaptSettings, CatalogSettings, EvaluationSettings, RecommenderSettings
from sda_features.errors import FeatureMismatchError

if TYPE_CHECKING:
    from sda_features.lvlm.checkpoint import LoadedEncoder
    from sda_features.lvlm.finetune import AdaptResult
    from sda_features.lvlm.plan import Plan
    from sda_features.recommenders.train import TrainResult

MODALITIES = 2  # vectors of a complete item
IDS_ALONE = "id"  # the feature set of a recommender that reads no vectors


@dataclass(frozen=True)
class MaterializeResult:
    """What `materialize` did.

    Attributes:
        view: feature view that was written.
        version: adapter version of its vectors.
        encoded: items encoded in this run.
        unchanged: items whose stored vectors are of this version and content.
        online_rows: items written to the online store and seen there afterwards.
        report: bad catalogue rows.
    """

    view: str
    version: str
    encoded: int
    unchanged: int
    online_rows: int
    report: CatalogReport


def adapt(settings: AdaptSettings, output: Path, progress: bool = True, resume: bool = False) -> AdaptResult:
    """Train an adapter on a catalogue; see `lvlm.finetune`.

    The catalogue is opened first: a wrong path or column should not cost the start of torch.
    """
    catalog = Catalog(settings.catalog)
    from sda_features.lvlm.finetune import finetune

    return finetune(settings, catalog, output, progress, resume)


def plan_adapt(settings: AdaptSettings) -> Plan:
    """What `adapt` would train and need; see `lvlm.plan`."""
    catalog = Catalog(settings.catalog)
    from sda_features.lvlm.plan import plan

    return plan(settings, catalog)


def materialize(
    repo: Path,
    feature_set: str,
    catalog_settings: CatalogSettings,
    load_encoder: Callable[[], LoadedEncoder],
    *,
    batch_size: int = 32,
    shard_rows: int = 1024,
    progress: bool = True,
) -> MaterializeResult:
    """Encode the items of a catalogue and write their vectors to Feast, offline then online.

    Each shard becomes one offline part as soon as it is encoded. A run that follows an interrupted
    one, or a change of the catalogue, encodes only items whose content or version is not stored.

    Args:
        repo: an applied Feast repo that defines the feature set.
        feature_set: e.g. "sda"; names the feature view.
        catalog_settings: the catalogue.
        load_encoder: gives the encoder; called after repo, catalogue and online store have been
            found usable, because a model takes long to load.
        batch_size: sequences encoded together.
        shard_rows: items of one offline part.
        progress: show a bar on standard error.

    Raises:
        CatalogError, FeatureStoreError, OnlineStoreError, CheckpointError: see the message.
    """
    from sda_features.feature_store.materialize import check_online_store, materialize_view
    from sda_features.feature_store.parts import stored_rows, write_part
    from sda_features.feature_store.repo import open_feature_set
    from sda_features.feature_store.schema import vectors_table

    catalog = Catalog(catalog_settings)
    opened = open_feature_set(repo, feature_set)
    check_online_store(opened)
    loaded = load_encoder()
    from sda_features.lvlm.encode import encode_items

    started = datetime.now(UTC)
    stored = {
        str(row["item_id"]): row["content_hash"]
        for row in stored_rows(opened.folder).to_pylist()
        if row["adapter_version"] == loaded.version
    }
    unchanged = encoded = 0

    def changed_items() -> Iterator[Item]:
        nonlocal unchanged
        for item in catalog.items():
            if stored.get(item.item_id) == item.content_hash:
                unchanged += 1
                bar.update(MODALITIES)
            else:
                yield item

    with tqdm(desc="encoding", total=MODALITIES * catalog.rows, unit="vector", disable=not progress) as bar:
        for shard in encode_items(loaded, changed_items(), batch_size, shard_rows, bar.update):
            table = vectors_table(
                shard.item_ids,
                text=shard.text,
                text_found=shard.text_found,
                image=shard.image,
                image_found=shard.image_found,
                adapter_version=loaded.version,
                content_hashes=shard.content_hashes,
                event_timestamp=started,
            )
            write_part(opened.folder, table, id_type=opened.id_type)
            encoded += len(shard.item_ids)
    online = materialize_view(repo, feature_set)
    return MaterializeResult(online.view, loaded.version, encoded, unchanged, online.rows, catalog.report)


def train_recommender(
    interactions: Path,
    features: str,
    settings: RecommenderSettings,
    evaluation: EvaluationSettings,
    *,
    repo: Path | None = None,
    user_column: str = "user_id",
    item_column: str = "item_id",
    time_column: str | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train SASRec on a log, with item vectors from Feast's offline store, and evaluate it.

    Args:
        interactions: parquet, CSV or JSONL log.
        features: "id" for id embeddings alone, else a feature set of `repo`.
        settings: of the recommender.
        evaluation: of the protocol.
        repo: an applied Feast repo; not needed for "id".
        user_column, item_column, time_column: columns of the log, see `read_interactions`.
        progress: show a bar on standard error.

    Raises:
        InteractionsError, FeatureStoreError: see the message.
        FeatureMismatchError: no item of the log has a vector, or vectors of several versions are mixed.
    """
    from sda_features.interactions import read_interactions
    from sda_features.recommenders.train import train

    log = read_interactions(
        interactions, user_column=user_column, item_column=item_column, time_column=time_column
    )
    vectors = None
    if features != IDS_ALONE:
        vectors = _stored_vectors(repo or Path(), features, log.item_ids)
    return train(log, settings, evaluation, vectors, progress=progress)


def _stored_vectors(repo: Path, feature_set: str, item_ids: Array) -> dict[str, np.ndarray]:
    """Modality -> float32 [I + 1, d] in the order of item codes; zero for padding and missing vectors."""
    from sda_features.feature_store.offline import load_vectors
    from sda_features.recommenders.features import align_vectors

    found = load_vectors(repo, feature_set, item_ids.to_pylist())
    if len(found.versions) > 1:
        raise FeatureMismatchError(
            f"The vectors of feature set {feature_set!r} come from {len(found.versions)} adapter versions "
            f"({', '.join(found.versions)}) and do not lie in one space; materialize the whole catalogue again."
        )
    if not (found.text_found.any() or found.image_found.any()):
        raise FeatureMismatchError(
            f"None of the {len(item_ids)} items of the log, such as {item_ids[0].as_py()!r}, has a vector in "
            f"feature set {feature_set!r}. Do the ids of log and catalogue agree?"
        )
    blocks = {"text": (found.text, found.text_found), "image": (found.image, found.image_found)}
    return {
        name: align_vectors(item_ids, found.item_ids, matrix)
        for name, (matrix, mask) in blocks.items()
        if mask.any()
    }
