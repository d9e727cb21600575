"""What the calls of `sda_features.api` return: `str()` for people, `as_dict()` for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, ClassVar


class Result:
    """Base of results; the command line prints one of the two forms and ends with `exit_status`."""

    CHECK_FAILED: ClassVar[int] = 3  # a check was made and did not hold; 1 is for errors

    def as_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON has, but for paths: those are text by `artifacts.to_json`."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    @property
    def exit_status(self) -> int:
        """0, unless something was checked that does not hold."""
        return 0


def text_table(
    rows: Iterable[Sequence[Any]],
    headers: Sequence[str],
    aligned: Sequence[str] | None = None,
    floatfmt: str | Sequence[str] = ".4f",
) -> str:
    """The one style of tables, in a terminal and in files: Markdown.

    Args:
        rows: cells; None is a dash.
        headers: one a column.
        aligned: "left" or "right" for each column, and texts are left as they are; None: numbers are
            formatted, and aligned to the right.
        floatfmt: format of such numbers, for all columns or for each.
    """
    from tabulate import tabulate

    if aligned is not None:
        return tabulate(rows, headers, "github", disable_numparse=True, colalign=aligned, missingval="-")
    return tabulate(rows, headers, "github", floatfmt=floatfmt, missingval="-")
