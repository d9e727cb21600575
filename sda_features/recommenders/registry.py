"""Recommenders by the names that the command line takes.

An installed package adds its own with an entry point in the group `sda_features.recommenders`: the
name on the left, `module:Class` of a `base.Recommender` on the right.
"""

from __future__ import annotations

import inspect
from importlib.metadata import EntryPoint, entry_points

from sda_features.errors import SettingsError
from sda_features.recommenders.base import Recommender

GROUP = "sda_features.recommenders"
OWN = {
    "sasrec": "sda_features.recommenders.sasrec:SASRec",
    "bert4rec": "sda_features.recommenders.bert4rec:BERT4Rec",
    "vbpr": "sda_features.recommenders.vbpr:VBPR",
    "slmrec": "sda_features.recommenders.slmrec:SLMRec",
}


def find_recommender(name: str) -> type[Recommender]:
    """The class of a recommender.

    Raises:
        SettingsError: nobody has that name, or it names something else than a recommender.
    """
    points = _entry_points()
    if name not in points:
        raise SettingsError(f"No recommender {name!r}; there are {', '.join(points)}.")
    named = f"The recommender {name!r} ({points[name].value})"
    try:
        found = points[name].load()
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"{named} cannot be loaded: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, Recommender) and not inspect.isabstract(found)):
        raise SettingsError(f"{named} is not a complete subclass of {Recommender.__name__}.")
    return found


def find_class(class_name: str) -> type[Recommender] | None:
    """The recommender whose class has that name, as a run's manifest does; None: nobody's.

    Raises:
        SettingsError: the installed package that has it cannot be loaded.
    """
    points = _entry_points()
    name = next((name for name in [*OWN, *points] if points[name].attr == class_name), None)  # ours win
    return None if name is None else find_recommender(name)


def _entry_points() -> dict[str, EntryPoint]:
    own = [EntryPoint(name, value, GROUP) for name, value in OWN.items()]
    return {point.name: point for point in [*entry_points(group=GROUP), *own]}  # ours win
