"""Catalogue to checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sda_features.catalog.rows import Catalog
from sda_features.config import AdaptSettings

if TYPE_CHECKING:
    from sda_features.lvlm.finetune import AdaptResult
    from sda_features.lvlm.plan import Plan


def adapt(settings: AdaptSettings, output: Path, progress: bool = True, resume: bool = False) -> AdaptResult:
    """Train an adapter on a catalogue; see `lvlm.finetune`.

    The catalogue is opened first: a wrong path or column should not cost the start of torch.
    """
    catalog = Catalog(settings.catalog)
    from sda_features.lvlm.finetune import finetune
    from sda_features.lvlm.plan import fitted

    settings = fitted(settings, Catalog(settings.catalog))
    return finetune(settings, catalog, output, progress, resume)


def plan_adapt(settings: AdaptSettings, card: str | None = None) -> Plan:
    """What `adapt` would train and need, on this machine or on a named card; see `lvlm.plan`."""
    catalog = Catalog(settings.catalog)
    from sda_features.lvlm.memory import find_card
    from sda_features.lvlm.plan import plan

    return plan(settings, catalog, find_card(card) if card else None)
