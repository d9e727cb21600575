"""`sda-features promote`: make a version live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sda_features.api.vector_set import VectorSet

from .options import show, verb
from .version_options import vector_set, version_options


@verb(VectorSet.promote)
@click.argument("version")
@click.option("--gated", is_flag=True, help="Refuse a version that `sda-features gate` has not passed.")
@version_options
def command(repo: Path, feature_set: str, as_json: bool, **values: Any) -> None:
    """Serve VERSION, or the one version that begins with it.

    Readers in flight get vectors of the old version or of the new one, never of both.

    \b
    Example:
      sda-features promote 3f9c --repo shop/feature_repo
    """
    show(vector_set(repo, feature_set).promote(**values), as_json)
