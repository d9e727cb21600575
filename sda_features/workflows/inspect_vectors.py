"""The state of a version's vectors in numbers, alone and beside another version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sda_features.catalog.rows import Catalog
from sda_features.config import CatalogSettings
from sda_features.errors import FeatureMismatchError, SettingsError
from sda_features.evaluation.neighbours import (
    Neighbours,
    identical,
    kept_share,
    nearest,
    purity,
    side_by_side,
    unit_rows,
)
from sda_features.evaluation.space import choose, one_modality, two_modalities
from sda_features.report.inspection import inspection_table
from sda_features.results import Result

NEAREST = 10
QUERIES = 20_000  # items whose neighbours are looked up; of a larger catalogue a random choice
SAME_AS = 2_048  # items that are compared with all others for equality
COMMON = 10  # a picture that so many other items have is a placeholder
MOST_LABELS = 200  # a column with more values names items rather than kinds of item

View = Literal["text", "image", "both"]
VIEWS: tuple[View, ...] = ("text", "image", "both")


@dataclass(frozen=True, eq=False)
class Space:
    """The vectors of n items in one version.

    Attributes:
        name: feature set and version, for people.
        version: adapter version.
        text: float32 [n, d]; zero where there is none.
        image: float32 [n, d'].
    """

    name: str
    version: str
    text: NDArray[np.float32]
    image: NDArray[np.float32]

    @property
    def matrices(self) -> dict[str, NDArray[np.float32]]:
        """Modality -> vectors."""
        return {"text": self.text, "image": self.image}

    @property
    def found(self) -> dict[str, NDArray[np.bool_]]:
        """Modality -> bool [n]."""
        return {name: np.any(rows, axis=1) for name, rows in self.matrices.items()}

    @cached_property
    def views(self) -> dict[str, NDArray[np.float32]]:
        """text, image and both -> rows whose product is a similarity, zero where the item has no vector."""
        views = {name: unit_rows(rows) for name, rows in self.matrices.items()}
        views["both"] = side_by_side(self.text, self.image)
        views["both"][~(self.found["text"] & self.found["image"])] = 0
        return views

    @cached_property
    def queries(self) -> NDArray[np.int64]:
        """Items whose neighbours are looked up: all, or `QUERIES` at random, the same in spaces of one catalogue."""
        return choose(len(self.text), QUERIES, 0)

    @cached_property
    def neighbours(self) -> dict[str, Neighbours]:
        """View -> int32 [q, NEAREST], the nearest other items of `queries`; looked up once."""
        own = self.queries.tolist()
        return {name: nearest(rows[own], rows, NEAREST, own=own) for name, rows in self.views.items()}

    def only(self, items: NDArray[np.int64]) -> Space:
        """Some of the items; itself if these are all."""
        if len(items) == len(self.text):
            return self
        return Space(self.name, self.version, self.text[items], self.image[items])


def load_space(repo: Path, feature_set: str, item_ids: Sequence[str], version: str | None = None) -> Space:
    """Read a version's vectors through Feast's offline store.

    Args:
        version: adapter version or its beginning; None: the live one.

    Raises:
        FeatureMismatchError: no item has a vector, or rows of several versions are mixed.
        FeatureStoreError: see `load_vectors`.
    """
    from sda_features.feature_store.matrices import load_vectors

    read = load_vectors(repo, feature_set, item_ids, version=version)
    if len(read.versions) != 1:
        raise FeatureMismatchError(
            f"Expected vectors of one version for the items of the catalogue in feature set {feature_set!r}, found "
            f"{', '.join(read.versions) or 'none'}. Do the ids agree? Materialize the catalogue first."
        )
    name = f"{feature_set} {read.versions[0][:12]}"
    return Space(name, read.versions[0], np.asarray(read.text), np.asarray(read.image))


def load_spaces(
    repo: Path, feature_set: str, item_ids: Sequence[str], version: str | None, against: str | None
) -> list[Space]:
    """A version and, if asked for, the one to compare it with; see `load_space`.

    Args:
        against: `SET`, `@VERSION` or `SET@VERSION`; a version left out is the live one.

    Raises:
        SettingsError: both are the same.
    """
    spaces = [load_space(repo, feature_set, item_ids, version)]
    if against is not None:
        other, _, other_version = against.partition("@")
        spaces.append(load_space(repo, other or feature_set, item_ids, other_version or None))
        if spaces[0].name == spaces[1].name:
            raise SettingsError(
                f"--against {against} is {spaces[0].name} itself; name another version or set."
            )
    return spaces


@dataclass(frozen=True)
class Inspection(Result):
    """Numbers of one or two versions, and of the change from the second to the first."""

    spaces: list[dict[str, Any]]
    change: dict[str, Any] | None

    def __str__(self) -> str:
        return inspection_table(self.spaces, self.change)


def inspect_catalog(
    repo: Path,
    feature_set: str,
    settings: CatalogSettings,
    *,
    version: str | None = None,
    against: str | None = None,
) -> Inspection:
    """Numbers of one or two versions for the items of a catalogue, and of the change; see `load_spaces`."""
    ids, columns = read_columns(settings)
    return inspect_spaces(load_spaces(repo, feature_set, ids, version, against), columns)


def inspect_spaces(spaces: Sequence[Space], labels: Mapping[str, Sequence[str | None]]) -> Inspection:
    """Numbers of one or two versions of the same items, and of the change; see `inspect_space`."""
    change = compare_spaces(*spaces) if len(spaces) > 1 else None
    return Inspection([inspect_space(space, labels) for space in spaces], change)


def read_columns(settings: CatalogSettings) -> tuple[list[str], dict[str, list[str | None]]]:
    """Ids of the usable items and their text columns; pictures are not read.

    Raises:
        CatalogError: see `Catalog`.
    """
    catalog = Catalog(settings.model_copy(update={"max_bad_rows": 1.0}))
    catalog.image_column = None
    items = [(item.item_id, item.fields) for item in catalog.items()]
    columns = {name: [fields.get(name) for _, fields in items] for name in catalog.text_columns}
    return [item_id for item_id, _ in items], columns


def inspect_space(space: Space, labels: Mapping[str, Sequence[str | None]]) -> dict[str, Any]:
    """Numbers of one version.

    Args:
        space: n items.
        labels: catalogue column -> n values, for purity.

    Returns:
        What `report.inspection` prints; JSON types only.
    """
    found = space.found
    both, either = found["text"] & found["image"], found["text"] | found["image"]
    return {
        "name": space.name,
        "version": space.version,
        "items": len(both),
        "without": {name: int((~mask).sum()) for name, mask in {**found, "any": either}.items()},
        **{name: asdict(one_modality(rows, found[name])) for name, rows in space.matrices.items()},
        "both": asdict(two_modalities(space.text, space.image, both)),
        "identical": {name: _identical(rows[found[name]]) for name, rows in space.matrices.items()},
        "purity": {
            column: {view: _purity(space.neighbours[view], space.queries, values) for view in VIEWS}
            for column, values in kinds(labels).items()
        },
    }


def compare_spaces(candidate: Space, other: Space) -> dict[str, Any]:
    """What changes from `other` to `candidate` for the same n items.

    Returns:
        Name of the other, share of its neighbours that are kept, by view, and items that lost or
        gained a vector.
    """
    before, after = other.neighbours, candidate.neighbours
    return {
        "name": other.name,
        "version": other.version,
        "neighbours": NEAREST,
        "kept": {view: kept_share(before[view], after[view]) for view in VIEWS},
        "lost": {name: int((other.found[name] & ~mask).sum()) for name, mask in candidate.found.items()},
        "gained": {name: int((~other.found[name] & mask).sum()) for name, mask in candidate.found.items()},
    }


def kinds(labels: Mapping[str, Sequence[str | None]]) -> dict[str, Sequence[str | None]]:
    """The columns that put items into groups: 2 to `MOST_LABELS` values, each of two items on average.

    A column of lists that has more values, such as genres, counts by the first member of each list.
    """
    found: dict[str, Sequence[str | None]] = {}
    for name, values in labels.items():
        first = [value and value.split(", ")[0] for value in values]
        for title, candidate in ((name, values), (f"first of {name}", first)):
            if 2 <= len(set(filter(None, candidate))) <= min(MOST_LABELS, len(values) // 2):
                found[title] = candidate
                break
    return found


def _purity(
    found: Neighbours, queries: NDArray[np.int64], values: Sequence[str | None]
) -> dict[str, float] | None:
    everywhere = np.full((len(values), found.shape[1]), -1, np.int32)
    everywhere[queries] = found
    measured = purity(everywhere, values)
    return None if measured is None else {"share": measured[0], "chance": measured[1]}


def _identical(vectors: NDArray[np.float32]) -> dict[str, float | int]:
    """How many items have a vector that others have too: the same text, or one picture for all."""
    rows = unit_rows(vectors, centre=False)
    counts = identical(rows, choose(len(rows), SAME_AS, 0))
    if not len(counts):
        return {"shared": 0.0, "common": 0.0, "largest": 0}
    return {
        "shared": float((counts > 0).mean()),
        "common": float((counts >= COMMON).mean()),
        "largest": int(counts.max()) + 1 if counts.max() else 0,
    }
