"""Settings of a recommender, and what measured best for sparse and for dense logs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from sda_features.config.base import (
    Count,
    Device,
    Fraction,
    Rate,
    Seed,
    Settings,
    Temperature,
    Weight,
    Width,
)
from sda_features.errors import SettingsError


class RecommenderSettings(Settings):
    """Architecture and optimisation of a recommender. Defaults: SASRec on sparse data."""

    hidden_dim: Width = Field(50, description="Width of item and hidden states.")
    blocks: int = Field(2, gt=0, le=1000, description="Transformer blocks.")
    heads: int = Field(1, gt=0, le=1000, description="Attention heads.")
    inner_dim: Width = Field(256, description="Width of the feed-forward layer (BERT4Rec).")
    max_length: int = Field(50, gt=1, le=100_000, description="Most recent interactions that are read.")
    dropout: Rate = Field(0.5, description="Dropout rate.")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="Learning rate of Adam.")
    schedule: Literal["constant", "linear"] = Field(
        "constant", description="Course of the learning rate; linear: down to zero after `epochs`."
    )
    batch_size: Count = Field(
        128, description="Users (SASRec, BERT4Rec) or interactions (VBPR, SLMRec) in a step."
    )
    epochs: Count = Field(300, description="Most passes over the training sequences.")
    patience: Count = Field(20, description="Validations without a better NDCG@10 before training stops.")
    validate_every: Count = Field(5, description="Epochs between validations.")
    loss: Literal["bce", "ce"] = Field(
        "bce", description="bce: one uniform negative a position; ce: softmax over the catalogue."
    )
    mask_ratio: Fraction = Field(
        0.6, description="Share of a sequence that is masked in training (BERT4Rec)."
    )
    l2: Weight = Field(1e-2, description="Weight of the squared norms of the factors in a step (VBPR).")
    graph_layers: int = Field(3, gt=0, le=1000, description="Hops of graph propagation (SLMRec).")
    temperature: Temperature = Field(0.2, description="Temperature of the in-batch softmax (SLMRec).")
    ssl_task: Literal["fd", "fm", "fac", "fd+fm"] = Field(
        "fac",
        description="Self-supervised task of SLMRec; fd: feature dropout; fm: feature masking; "
        "fac: fine and coarse spaces; fd+fm: both augmentations at once.",
    )
    ssl_weight: Weight = Field(0.1, description="Weight of the self-supervised loss (SLMRec).")
    ssl_temperature: Temperature = Field(0.2, description="Temperature of the self-supervised loss (SLMRec).")
    feature_dropout: Rate = Field(
        0.3, description="Share of the item features that a view of fd drops (SLMRec)."
    )
    fusion: Literal["replace", "join"] = Field(
        "join", description="Item vectors replace or join the id embedding."
    )
    whiten: bool = Field(
        False,
        description="Whiten item vectors (ZCA): no direction weighs more than another; fitted on the log's items and "
        "kept with the run.",
    )
    id_dropout: Rate = Field(
        0.0,
        description="Share of items whose id part is dropped in a training step, so that their vectors are "
        "learned to stand alone, as those of new items do (join).",
    )
    adapter_learning_rate: float | None = Field(
        None, gt=0, le=1, description="Learning rate of what maps item vectors; none: that of all."
    )
    content_weight: Weight | Literal["auto"] = Field(
        0.0,
        description="Weight of the cosine between an item's vectors and those of the user's last items, beside the "
        "model's score; auto: the best of some on the validation users.",
    )
    seed: Seed = Field(0, description="Seed of initialisation, order, dropout and negatives.")
    device: Device = Field("auto", description="Torch device; auto: cuda when there is one, else cpu.")
    threads: int | None = Field(None, gt=0, le=4096, description="CPU threads; none: all.")


# Values of the models' papers and authors' code, where they differ from the defaults above: sparse as
# Amazon reviews are (5 to 10 interactions a user), dense as MovieLens is (100 and more). Learning rates
# and batch sizes were chosen on the validation users of Beauty and MovieLens-100k (docs/experiments.md). Where an
# item has one or two purchases, the content score is most of what can be known (docs/results.md).
SPARSE: dict[str, Any] = {"content_weight": "auto"}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "sparse": {
        "sasrec": SPARSE,
        "bert4rec": SPARSE | {"hidden_dim": 64, "heads": 2, "batch_size": 256},
        "vbpr": SPARSE | {"hidden_dim": 64, "batch_size": 1024},
        "slmrec": SPARSE | {"hidden_dim": 64, "batch_size": 2048, "learning_rate": 5e-3},
    },
    "dense": {
        "sasrec": {"max_length": 200, "dropout": 0.2},
        "bert4rec": {
            "hidden_dim": 64,
            "heads": 2,
            "max_length": 200,
            "dropout": 0.2,
            "mask_ratio": 0.2,
            "batch_size": 64,
            "learning_rate": 2e-3,
        },
        "vbpr": {"hidden_dim": 64, "batch_size": 4096, "learning_rate": 5e-3},
        "slmrec": {"hidden_dim": 64, "batch_size": 2048},
    },
}


def recommender_settings(model: str, preset: str, **values: Any) -> RecommenderSettings:
    """A preset's settings of a model, with `values` on top; a model that no preset knows has the defaults.

    Raises:
        SettingsError: no such preset, or a value is not usable.
    """
    if preset not in PRESETS:
        raise SettingsError(f"No preset {preset!r}; there are {', '.join(PRESETS)}.")
    return RecommenderSettings.parse(**PRESETS[preset].get(model, {}) | values)
