"""Settings of `adapt`: the base model, the adapter, the loss, the training."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from sda_features.config.base import (
    MANY,
    Count,
    Device,
    Fraction,
    Rate,
    Seed,
    Settings,
    Share,
    Temperature,
    Weight,
    Width,
)
from sda_features.config.catalog import CatalogSettings, PromptSettings
from sda_features.config.logs import LogColumns


class BackboneSettings(Settings):
    """The vision-language model and how its weights are held in memory."""

    model: str = Field(
        description="Checkpoint folder or hub name of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL model."
    )
    quantization: Literal["nf4", "int8", "none"] = Field("nf4", description="How base weights are stored.")
    dtype: Literal["auto", "fast", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Dtype of activations; auto: bfloat16 on a GPU that has it, else float32; "
        "fast: bfloat16 on a CPU that has it too.",
    )
    device: Device = Field("auto", description="Torch device; auto: cuda when there is one, else cpu.")
    trust_remote_code: bool = Field(False, description="Run Python code that ships with the checkpoint.")


class AdapterSettings(Settings):
    """MoDA (paper, Eq. 4-7), plain LoRA, or nothing."""

    kind: Literal["moda", "lora", "none"] = Field("moda", description="Which adapter is trained.")
    rank: Width = Field(8, description="Total rank r, shared by all experts.")
    experts: Width = Field(4, description="Number of experts N_e; divides the rank (MoDA).")
    alpha: float = Field(32.0, gt=0, le=1e6, description="LoRA alpha; updates are scaled by alpha / rank.")
    dropout: Rate = Field(0.1, description="Dropout on the adapter's input.")
    gate_dim: Width = Field(64, description="Width of the modality embedding that feeds a gate (MoDA).")
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        description="Names of the language-model linears that are adapted.",
    )

    @model_validator(mode="after")
    def _rank_splits(self) -> Self:
        if self.kind == "moda" and self.rank % self.experts:
            raise ValueError(f"rank {self.rank} does not split over {self.experts} experts")
        return self


class ProjectionSettings(Settings):
    """From the pooled hidden state to the d_m-dimensional item vector."""

    kind: Literal["pooled", "linear", "none"] = Field(
        "none",
        description="pooled: mean of equal blocks, no parameters; linear: trained; none: the hidden state.",
    )
    dim: Width = Field(768, description="Vector dimension d_m (pooled, linear).")


class LossSettings(Settings):
    """CMSA (paper, Eq. 1-3), its ablations, and what keeps the relations inside each modality."""

    kind: Literal["cmsa", "infonce"] = Field(
        "cmsa", description="Soft targets (cmsa), or the item itself as the only target (infonce)."
    )
    normalize: bool = Field(True, description="L2-normalise vectors before similarities.")
    centre: bool = Field(True, description="Subtract the batch's mean from each modality before that.")
    temperature: Temperature = Field(0.07, description="Temperature tau of Eq. 1.")
    learn_temperature: bool = Field(False, description="Train tau, starting at the value given.")
    teacher: Literal["fixed", "moving"] = Field(
        "fixed",
        description="Relations that T is made of; fixed: of the base model's vectors, centred; moving: of the "
        "vectors in training, as Eq. 2 is written.",
    )
    teacher_entropy: Fraction = Field(
        0.7,
        description="Entropy of a fixed T's rows over log N that its temperature is solved for on the catalogue.",
    )
    teacher_temperature: float | None = Field(
        None,
        ge=1e-3,
        le=100,
        description="Divides T's logits, 1 / tau as Eq. 2 is written; none: solved (fixed), or tau (moving).",
    )
    teacher_text_weight: Share = Field(
        0.5, description="Weight of text relations in T; pictures have the rest."
    )
    teacher_self_weight: Rate = Field(0.0, description="Share of T that is moved to the item itself.")
    detach_teacher: bool = Field(True, description="Send no gradient through a moving teacher.")
    second_direction: Literal["proper", "literal"] = Field(
        "proper", description="Image-to-text target: rows of T (proper) or its columns, as Eq. 3 is written."
    )
    structure_weight: Weight = Field(
        20.0,
        description="Weight of a loss inside each modality that keeps its relations those of the base model.",
    )
    structure_entropy: Fraction = Field(0.8, description="Entropy over log N of the relations that are kept.")
    behaviour_weight: Rate = Field(
        0.5, description="Share of T that goes to items that one customer took together (--interactions)."
    )

    @property
    def uses_base_vectors(self) -> bool:
        """Whether the loss compares with vectors of the base model."""
        return self.structure_weight > 0 or (self.kind == "cmsa" and self.teacher == "fixed")


class TrainSettings(Settings):
    """The optimisation of `adapt`."""

    steps: Count = Field(4000, description="Optimiser steps.")
    batch_size: int = Field(
        32, gt=1, le=MANY, description="Items in a step; each is contrasted with all others."
    )
    micro_batch_size: Count | Literal["auto"] | None = Field(
        "auto",
        description="Items encoded at a time; smaller than the batch bounds memory, same gradients; auto: what a GPU "
        "has memory for; none: the batch.",
    )
    learning_rate: float = Field(2e-4, gt=0, le=1, description="Peak learning rate of AdamW.")
    weight_decay: float = Field(0.0, ge=0, le=100, description="Weight decay of AdamW.")
    warmup_steps: int = Field(
        100, ge=0, le=MANY, description="Steps of linear warm-up before the cosine decay."
    )
    max_grad_norm: float = Field(
        1.0, gt=0, le=1e9, description="Gradient norm at which gradients are clipped."
    )
    gradient_checkpointing: bool | None = Field(
        None,
        description="Recompute activations in the backward pass; if not given, on a GPU that they would not fit on.",
    )
    deterministic: bool = Field(
        False,
        description="Choose kernels of a GPU that add up in one order: equal commands, and resumed ones, give equal "
        "weights. A CPU always does.",
    )
    seed: Seed = Field(0, description="Seed of initialisation, order and dropout.")
    validation_share: float = Field(
        0.05, ge=0, le=0.5, description="Share of items held out to measure what --validate-on names."
    )
    validate_on: Literal["alignment", "neighbours", "both"] = Field(
        "both",
        description="What the kept step is best at, on held-out items; alignment: text-to-image R@10; neighbours: ten "
        "nearest of the base model that are kept, or, with --interactions, items taken together among the "
        "ten nearest; both: the geometric mean.",
    )
    validate_every: Count = Field(250, description="Steps between validations; the last step is validated.")
    patience: Count = Field(5, description="Validations without a better step before training stops.")
    save_every: Count = Field(250, description="Steps between states that --resume can start from.")
    keep_states: Count = Field(2, description="Newest states that are kept.")
    tensorboard: bool = Field(False, description="Also log to OUTPUT/tensorboard (extra: tensorboard).")

    @property
    def items_at_once(self) -> int:
        """Items encoded at a time: the micro batch if it is a number, else the batch."""
        return self.micro_batch_size if isinstance(self.micro_batch_size, int) else self.batch_size


class BehaviourSettings(LogColumns):
    """A log of interactions as a second teacher, and what of it is held out."""

    interactions: Path | None = Field(
        None,
        description="Log of interactions; items that one customer took together become targets of each other.",
    )
    split: Literal["leave-one-out", "temporal"] = Field(
        "leave-one-out", description="What of the log is held out for evaluation, as --eval-split."
    )
    validation_from: Fraction = Field(
        0.8, description="Share of all interactions before the validation's date (temporal)."
    )
    test_from: Fraction = Field(
        0.9, description="Share of all interactions before the test's date (temporal)."
    )


class AdaptSettings(Settings):
    """Everything `sda-features adapt` needs; stored in the checkpoint."""

    catalog: CatalogSettings
    backbone: BackboneSettings
    prompts: PromptSettings = PromptSettings()
    adapter: AdapterSettings = AdapterSettings()
    projection: ProjectionSettings = ProjectionSettings()
    loss: LossSettings = LossSettings()
    behaviour: BehaviourSettings = BehaviourSettings()
    train: TrainSettings = TrainSettings()
