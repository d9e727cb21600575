"""The numbers of `inspect` as tables: in a terminal, and in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sda_features.config import MODALITIES
from sda_features.report.tables import formatted
from sda_features.results import text_table

Numbers = Mapping[str, Any]

VIEWS = {"text": "text", "image": "picture", "both": "both"}


def space_rows(spaces: Sequence[Numbers]) -> list[list[str]]:
    """One row a measure, one column a space.

    Args:
        spaces: what `workflows.inspect_vectors.inspect_space` returns, one a version.
    """
    rows = [
        ["items", *(f"{space['items']:,}" for space in spaces)],
        ["without text / picture / any vector", *(_without(space["without"]) for space in spaces)],
    ]
    rows += [
        [title, *(_pair([space[name][measure] for name in MODALITIES], form) for space in spaces)]
        for title, measure, form in (
            ("dimension, text / picture", "dim", "d"),
            ("spread, text / picture", "spread", ".3f"),
            ("uniformity, text / picture", "uniformity", ".2f"),
            ("effective rank, text / picture", "effective_rank", ".0f"),
        )
    ]
    rows += [
        [title, *(formatted(space["both"][measure], ".3f") for space in spaces)]
        for title, measure in (("modality gap", "modality_gap"), ("alignment", "alignment"))
    ]
    for title, measure in (("text finds picture", "text_to_image"), ("picture finds text", "image_to_text")):
        for k in spaces[0]["both"][measure]:
            head = f"{title}, R@{k} of {spaces[0]['both']['among']:,}"
            rows.append([head, *(formatted(space["both"][measure][k], ".3f") for space in spaces)])
    for name in MODALITIES:
        title = f"same {VIEWS[name]} vector as another item / as ten or more"
        rows.append([title, *(_shares(space["identical"][name]) for space in spaces)])
    for column in spaces[0]["purity"]:
        title = f"neighbours with the same {column}, {' / '.join(VIEWS.values())} (chance)"
        rows.append([title, *(_purity(space["purity"].get(column)) for space in spaces)])
    return rows


def change_rows(change: Numbers) -> list[list[str]]:
    """What changed against another version, one row a fact."""
    kept = " / ".join(formatted(change["kept"][view], ".3f") for view in VIEWS)
    return [
        [f"of {change['neighbours']} neighbours kept, {' / '.join(VIEWS.values())}", kept],
        *(
            [f"items that {did} a vector, text / picture", _pair(list(change[did].values()), "d")]
            for did in ("lost", "gained")
        ),
    ]


def inspection_table(spaces: Sequence[Numbers], change: Numbers | None) -> str:
    """Text of the command `inspect`."""
    aligned = ["left"] * (1 + len(spaces))
    table = text_table(space_rows(spaces), ["", *(space["name"] for space in spaces)], aligned)
    if change is None:
        return table
    return f"{table}\n\n{text_table(change_rows(change), ['', 'against ' + change['name']], ['left'] * 2)}"


def _pair(values: Sequence[float | None], form: str) -> str:
    return " / ".join(formatted(value, form) for value in values)


def _without(counts: Mapping[str, int]) -> str:
    return " / ".join(f"{counts[name]:,}" for name in ("text", "image", "any"))


def _shares(found: Numbers) -> str:
    largest = f" (largest group about {found['largest']:,})" if found["largest"] else ""
    return f"{found['shared']:.1%} / {found['common']:.1%}{largest}"


def _purity(measured: Numbers | None) -> str:
    if measured is None:
        return "-"
    chance = next((value["chance"] for value in measured.values() if value), None)
    shares = " / ".join(formatted(value and value["share"], ".2f") for value in measured.values())
    return f"{shares} ({formatted(chance, '.2f')})"
