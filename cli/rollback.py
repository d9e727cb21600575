"""`sda-features rollback`: make the version live that was live before."""

from __future__ import annotations

from pathlib import Path

from sda_features.api.vector_set import VectorSet

from .options import show, verb
from .version_options import vector_set, version_options


@verb(VectorSet.rollback)
@version_options
def command(repo: Path, feature_set: str, as_json: bool) -> None:
    """Serve the version that was live before; a second call returns.

    \b
    Example:
      sda-features rollback --repo shop/feature_repo
    """
    show(vector_set(repo, feature_set).rollback(), as_json)
