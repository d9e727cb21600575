"""Item vectors for recommenders: adapt a vision-language model, store its vectors in Feast, serve them.

    from sda_features import EmbeddingClient, Repo

What a name needs is imported when it is first used: a service that reads vectors needs numpy and redis alone.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sda_features.api.functions import adapt, compare, diagnose, doctor, evaluate, export
    from sda_features.api.repo import Repo
    from sda_features.serving import AsyncEmbeddingClient, EmbeddingClient

__version__ = "0.1.0"

_MODULES = {
    "sda_features.api.functions": ("adapt", "compare", "diagnose", "doctor", "evaluate", "export"),
    "sda_features.api.repo": ("Repo",),
    "sda_features.serving": ("AsyncEmbeddingClient", "EmbeddingClient"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AsyncEmbeddingClient",
    "EmbeddingClient",
    "Repo",
    "adapt",
    "compare",
    "diagnose",
    "doctor",
    "evaluate",
    "export",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)
