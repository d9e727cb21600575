"""Every error a user can cause. A message says what was expected, what came, and what to do.

Each class derives from `SDAError`, which the command line prints without a traceback, and from the
builtin that code without knowledge of this package would catch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class SDAError(Exception):
    """Base of all errors raised on purpose by this package."""


class SettingsError(SDAError, ValueError):
    """A setting, or a combination of settings, is not usable."""


class CatalogError(SDAError, ValueError):
    """The item catalogue cannot be read, or too many of its rows are bad."""


class InteractionsError(SDAError, ValueError):
    """The interaction log cannot be read or split."""


class CheckpointError(SDAError, ValueError):
    """A checkpoint folder is missing, damaged, or belongs to another base model."""


class BackboneError(SDAError, ValueError):
    """A vision-language model cannot be loaded or adapted."""


class MemoryExhaustedError(SDAError, MemoryError):
    """A GPU's memory does not hold what was asked of it."""


class EngineError(SDAError, RuntimeError):
    """The cluster that encodes a catalogue cannot be reached or has failed."""


class FeatureStoreError(SDAError, RuntimeError):
    """A Feast repository, its definitions or its offline store is not usable."""


class OnlineStoreError(SDAError, ConnectionError):
    """The online store cannot be reached or holds something else than expected."""


class FeatureMismatchError(SDAError, ValueError):
    """Stored vectors do not have the dimension, dtype or version that the reader asked for."""


class ParityError(SDAError, ValueError):
    """Two places hold different values of one item."""


class RankingError(SDAError, ValueError):
    """Scores cannot be ranked (NaN, wrong shape, empty)."""


class ImageProblem(SDAError, ValueError):
    """Why the picture of one catalogue row is not usable.

    Attributes:
        reason: stable name for reports, e.g. "broken_image".
        detail: one sentence for a person.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    @property
    def transient(self) -> bool:
        """Whether nothing is known of the picture: it may be there at the next try."""
        return self.reason == "image_unreachable"


@contextlib.contextmanager
def foreign(kind: type[SDAError], message: str) -> Iterator[None]:
    """A boundary around code of others: whatever it raises becomes an error of ours that names the cause.

    Lack of memory stays what it is, and so does what is raised on purpose.

    Args:
        kind: the error to raise.
        message: what failed, without a full stop; the cause's own words follow.
    """
    try:
        yield
    except (SDAError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch.OutOfMemoryError
            raise
        said = " ".join(str(error).split())[:1000]
        raise kind(f"{message}: {type(error).__name__}{f': {said}' if said else ''}") from error
