"""Jobs that join parts which do not know each other: encoder to feature store, feature store to trainer."""

from sda_features.workflows.adapt import adapt, plan_adapt
from sda_features.workflows.materialize import MaterializeResult, materialize
from sda_features.workflows.train import train_recommender
from sda_features.workflows.verify import verify

__all__ = [
    "MaterializeResult",
    "adapt",
    "materialize",
    "plan_adapt",
    "train_recommender",
    "verify",
]
