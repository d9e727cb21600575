"""Where input lies: a path, or the URL of a file system that fsspec knows (s3://, gs://, https://, ...)."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fsspec.core import url_to_fs

from sda_features.errors import SDAError


def file_system(location: Path | str, what: str, error: type[SDAError]) -> tuple[Any, str]:
    """The fsspec file system of a path or URL, and the name of the file or folder there.

    Args:
        location: the path or URL.
        what: what lies there, for messages.
        error: raised if the URL holds a password, or nothing here reads such URLs.
    """
    if isinstance(location, str) and urlsplit(location).password is not None:
        raise error(
            f"The URL of the {what} holds a password. Give it through the environment or the configuration of "
            "its file system, where it does not end up in logs."
        )
    try:
        files, name = url_to_fs(str(location))
    except (ImportError, ValueError) as problem:  # no such protocol, or its package is not installed
        raise error(f"There is no file system for the {what} {shown(location)}: {problem}") from None
    return files, name


def shown(location: Path | str) -> str:
    """A path or URL for messages, without what a URL asks: it may be a signature."""
    text = str(location)
    return text.partition("?")[0] if isinstance(location, str) and "://" in text else text
