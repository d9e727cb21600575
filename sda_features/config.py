"""Settings of every stage: frozen, validated, each value described once, on its field.

The command line builds its options from these models (cli/options.py), and manifests store them
verbatim. A setting that a model does not know is an error, and all faults are reported together.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sda_features.errors import SettingsError

SettingsT = TypeVar("SettingsT", bound="Settings")

MANY = 1_000_000_000  # more than any count of steps, rows or pixels; keeps typing errors out
Modality = Literal["text", "image"]
MODALITIES: tuple[Modality, ...] = ("text", "image")
WIDEST = 65_536  # of a layer or a vector
SEED = 2**32 - 1  # what numpy and torch both take
DEVICE = r"^(auto|cpu|meta|mps|(cuda|xpu)(:\d{1,3})?)$"

Count = Annotated[int, Field(gt=0, le=MANY)]
Width = Annotated[int, Field(gt=0, le=WIDEST)]
Seed = Annotated[int, Field(ge=0, le=SEED)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Temperature = Annotated[float, Field(ge=1e-3, le=100)]
Device = Annotated[str, Field(pattern=DEVICE)]


class Settings(BaseModel):
    """Base of all settings: immutable, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @classmethod
    def parse(cls, **values: Any) -> Self:
        """Build the settings, turning every validation fault into one `SettingsError`."""
        try:
            return cls(**values)
        except ValidationError as error:
            faults = [
                f"{'.'.join(str(part) for part in fault['loc']) or cls.__name__}: "
                f"{fault['msg']} (got {fault['input']!r})"
                for fault in error.errors()
            ]
            raise SettingsError("\n".join(["These settings are not usable:", *faults])) from None


class CatalogSettings(Settings):
    """Where items come from and which of their columns are read."""

    path: str | Path = Field(
        description="Catalogue: a parquet, JSONL or CSV file, or a folder of parquet files; a path or an fsspec URL."
    )
    id_column: str = Field("item_id", description="Column with the item id.")
    text_columns: tuple[str, ...] = Field(
        (), description="Text columns in prompt order; none: every other column."
    )
    image_column: str | None = Field(
        None, description="Column with image bytes, a path or a URL; none: 'image' if present."
    )
    image_root: Path | None = Field(
        None, description="Folder that image paths are relative to and may not leave."
    )
    image_hosts: tuple[str, ...] = Field(
        (),
        description="Hosts that image URLs may name, e.g. img.shop.example or img.shop.example:8080; "
        "an address that is not public is listed itself.",
    )
    image_timeout: float = Field(
        30.0, gt=0, le=3600, description="Seconds that the picture of a URL may take, retries included."
    )
    max_image_bytes: Count = Field(20_000_000, description="Largest encoded image, in bytes.")
    max_image_pixels: Count = Field(50_000_000, description="Largest image as stored, in pixels.")
    max_bad_rows: Share = Field(0.1, description="Share of bad rows above which the run stops.")
    max_unreachable: Share = Field(
        0.05,
        description="Share of rows whose picture cannot be reached now above which the run stops; such a row "
        "keeps what is stored of it.",
    )

    @field_validator("path")
    @classmethod
    def _path_or_url(cls, value: Path | str) -> Path | str:
        return Path(value) if isinstance(value, str) and "://" not in value else value

    @field_validator("image_hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        pattern = r"[\w.-]+(:\d{1,5})?|\[[0-9a-fA-F:.]+\](:\d{1,5})?|[0-9a-fA-F:.]+"
        if wrong := [host for host in value if not re.fullmatch(pattern, host)]:
            raise ValueError(f"{wrong[0]!r} is no host; expected one such as img.shop.example, or host:port")
        return value


class PromptSettings(Settings):
    """The two prompts of an item (paper, section 2.1). Stored in the checkpoint."""

    text_instruction: str = Field(
        "Summarize the following item.", description="First line of the text prompt."
    )
    image_instruction: str = Field(
        "Summarize the item in the picture.",
        description="Line that follows the picture.",
    )
    max_field_chars: Count = Field(100, description="Length at which each field value is cut, in characters.")
    max_text_tokens: Count = Field(
        2048, description="Length at which a text prompt is cut, in tokens; what is cut is counted."
    )
    max_image_side: int = Field(
        256, ge=28, le=WIDEST, description="Longest side of an image after scaling down, in pixels."
    )


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


class LogColumns(Settings):
    """Where an interaction log has what."""

    user_column: str = Field("user_id", description="Column of the log with the user id.")
    item_column: str = Field("item_id", description="Column of the log with the item id.")
    time_column: str | None = Field(
        None,
        description="Column of the log that orders a user's rows; none: timestamp, position or event_timestamp.",
    )


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


class LogSettings(LogColumns):
    """How an interaction log is read."""

    k_core: int = Field(
        0,
        ge=0,
        le=MANY,
        description="Drop users and items with fewer interactions, until none is left; 0: keep all.",
    )


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
    max_users: int | None = Field(
        10_000, gt=0, le=MANY, description="Users measured, drawn by the seed; none: all."
    )
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
