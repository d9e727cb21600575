"""Settings of every stage: frozen, validated, each value described once, on its field.

The command line builds its options from these models (cli/options.py), and manifests store them
verbatim. A setting that a model does not know is an error, and all faults are reported together.
"""

from sda_features.config.adapt import (
    AdapterSettings,
    AdaptSettings,
    BackboneSettings,
    BehaviourSettings,
    LossSettings,
    ProjectionSettings,
    TrainSettings,
)
from sda_features.config.base import DEVICE, MANY, MODALITIES, SEED, WIDEST, Modality, Settings
from sda_features.config.catalog import CatalogSettings, PromptSettings
from sda_features.config.evaluation import EvaluationSettings, GateSettings, VectorEvaluationSettings
from sda_features.config.logs import LogSettings
from sda_features.config.recommenders import PRESETS, RecommenderSettings, recommender_settings

__all__ = [
    "DEVICE",
    "MANY",
    "MODALITIES",
    "PRESETS",
    "SEED",
    "WIDEST",
    "AdaptSettings",
    "AdapterSettings",
    "BackboneSettings",
    "BehaviourSettings",
    "CatalogSettings",
    "EvaluationSettings",
    "GateSettings",
    "LogSettings",
    "LossSettings",
    "Modality",
    "ProjectionSettings",
    "PromptSettings",
    "RecommenderSettings",
    "Settings",
    "TrainSettings",
    "VectorEvaluationSettings",
    "recommender_settings",
]
