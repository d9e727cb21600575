"""What an exception says to a user, in one message: what went wrong, the cause, and what to do."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import re

from sda_features.errors import SDAError

ADVICE = {
    errno.ENOSPC: "Free some space and run again; what is finished is kept.",
    errno.EDQUOT: "Free some of your quota and run again; what is finished is kept.",
    errno.EFBIG: "A limit on the size of files (ulimit -f) or the file system stops it.",
    errno.EROFS: "Name a place that can be written.",
    errno.EACCES: "Name another place, or ask for the rights.",
    errno.EPERM: "Name another place, or ask for the rights.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ELOOP: "Symbolic links go in a circle there.",
    errno.EBUSY: "Something is mounted there or uses it; name a folder below it.",
}
LIMIT = 2000  # characters of a message
PACKAGE_OF = {
    "confluent_kafka": "confluent-kafka",
    "PIL": "pillow",
    "faiss": "faiss-cpu",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


def explain(error: BaseException) -> str:
    """The message of an exception: of ours as it is, of others with their kind and what to do.

    The world's faults (a full disk, no rights, no memory) are told by themselves; of anything else
    the message says that it was not foreseen.
    """
    if isinstance(error, SDAError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and (extra := _extra_with(error.name)):
        return f"This needs {error.name}, which is not installed: pip install 'sda-features[{extra}]'."
    if (number := _system_error(error)) is not None:
        names = (getattr(error, "filename", None), getattr(error, "filename2", None))
        places = " -> ".join(str(name) for name in names if name is not None)
        told = getattr(error, "strerror", None) or os.strerror(number)
        return f"{places + ': ' if places else ''}{told}. {ADVICE.get(number, '')}".rstrip()
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch has its own
        return f"Memory ran out{_said(error)}. Lower --batch-size, set --micro-batch-size, or give the process more."
    return (
        f"{type(error).__name__}{_said(error)}. This was not foreseen: --verbose shows where it comes from, "
        "for a report."
    )


def _extra_with(module: str | None) -> str | None:
    """The extra of this package that brings a module, by the metadata it was installed with."""
    package = PACKAGE_OF.get(str(module), module)
    for needed in importlib.metadata.requires("sda-features") or ():
        found = re.match(r"([\w.-]+).*; extra == ['\"]([\w-]+)", needed)
        if found and found[1] == package:
            return found[2]
    return None


def _system_error(error: BaseException) -> int | None:
    """The system's number of an error; safetensors and deltalake, written in Rust, tell it in their text alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def _said(error: BaseException) -> str:
    """The first of what an exception says, on one line."""
    said = " ".join(str(error).split())
    return f": {said[:LIMIT].rstrip('.')}" if said else ""
