"""Settings of what is measured: protocols, vectors by themselves, limits of the gate."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from sda_features.config.base import Count, Fraction, Seed, Settings, Share


class EvaluationSettings(Settings):
    """The protocol of an evaluation; part of each metric's meaning."""

    split: Literal["leave-one-out", "temporal", "cold"] = Field(
        "leave-one-out",
        description="leave-one-out: each user's last item; temporal: each user's first item after a date; "
        "cold: each user's last item of those that are taken out of training.",
    )
    cold_share: Fraction = Field(0.1, description="Share of the items that are taken out of training (cold).")
    validation_from: Fraction = Field(
        0.8, description="Share of all interactions before the validation's date (temporal)."
    )
    test_from: Fraction = Field(
        0.9, description="Share of all interactions before the test's date (temporal)."
    )
    cutoff: Count = Field(10, description="k of Hit@k and NDCG@k.")
    negatives: Count = Field(100, description="Sampled negatives a user (protocol sampled-N).")
    tail_below: Count = Field(4, description="A tail item has fewer training interactions than this.")
    seed: Seed = Field(0, description="Seed of the sampled negatives; independent of the model's.")

    @model_validator(mode="after")
    def _validation_comes_first(self) -> Self:
        if self.validation_from >= self.test_from:
            raise ValueError(
                f"validation_from {self.validation_from} is not before test_from {self.test_from}"
            )
        return self


class VectorEvaluationSettings(Settings):
    """How `evaluate-vectors` measures vectors without training."""

    neighbours: Count = Field(20, description="k of recall@k of co-occurrences.")
    history: Count = Field(10, description="Last items of a user that the next item is ranked by.")
    decay: float = Field(0.8, gt=0, le=1, description="Weight of an item against the one that came after it.")
    pairs: Literal["test", "all"] = Field(
        "test",
        description="Co-occurrences with a held-out item, or all of the log: more of them, but only for vectors "
        "that were not trained on the log.",
    )
    window: Count = Field(20, description="Most interactions between two items of a session.")
    max_users: Count | None = Field(10_000, description="Users measured, drawn by the seed; none: all.")
    seed: Seed = Field(0, description="Seed of the drawn users and of the bootstrap.")


class GateSettings(Settings):
    """What a version must hold before it may be served; [limits] in sda-features.toml changes it."""

    max_lost: Share = Field(
        0.01, description="Share of items that have a vector in the live version and none in the new one."
    )
    max_without: Share = Field(0.1, description="Share of items without any vector.")
    max_spread: Share = Field(
        0.98, description="Length of the mean unit vector of a modality; 1 is a collapsed space."
    )
    min_rank: float = Field(
        0.5, ge=0, description="Effective rank of a modality, as a share of the live version's."
    )
    min_recall: float = Field(
        0.8, ge=0, description="R@10 of pictures found by texts, as a share of the live version's."
    )
    max_common_pictures: Share = Field(
        0.05, description="Share of items whose picture vector ten others have: placeholders."
    )
    min_kept: Share = Field(
        0.02, description="Share of the live version's ten nearest items that stay, by text and picture."
    )
    max_worse: Share = Field(
        0.0,
        description="How much a metric on the log may fall before it counts; it fails if its 95 % interval lies below.",
    )
    max_size: float = Field(2.0, gt=0, description="Bytes an item, as a share of the live version's.")
    sample: Count = Field(1000, description="Items whose stored vectors are compared bit for bit.")
