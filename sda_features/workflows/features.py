"""Item vectors by the names that the command line takes: ids alone, a feature set, one modality of it, a file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sda_features.config import MODALITIES
from sda_features.errors import FeatureMismatchError
from sda_features.evaluation.neighbours import unit_rows
from sda_features.offline.schema import ITEM_ID, column_dim, matrix_of
from sda_features.tables.cells import AS_IT_IS, ID
from sda_features.tables.files import open_table

IDS_ALONE = "id"  # the feature set of a recommender that reads no vectors
SHARED = "shared"  # one space for all modalities, see `shared_space`
FILE_COLUMN = ":"  # between a parquet file and one column of it

Matrices = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Features:
    """Vectors of I items for a trainer.

    Attributes:
        name: as it was asked for.
        modalities: modality -> float32 [I + 1, d]; zero in row 0 (padding) and for missing vectors.
            None: ids alone.
        version: of the checkpoint that made them, if known.
        sha256: over names, shapes and values; None for ids alone.
    """

    name: str
    modalities: Matrices | None
    version: str | None
    sha256: str | None

    @property
    def label(self) -> str:
        """Short name for tables and folders."""
        return "+".join(map(_label, parts_of(self.name)))

    @property
    def items(self) -> int:
        """I; 0 for ids alone."""
        return len(next(iter(self.modalities.values()))) - 1 if self.modalities else 0

    @property
    def without_vector(self) -> int:
        """Items that have no vector of any modality."""
        if self.modalities is None:
            return 0
        found = np.logical_or.reduce([matrix[1:].any(axis=1) for matrix in self.modalities.values()])
        return int((~found).sum())


def is_path(name: str) -> bool:
    """Whether a name of features is that of a file, or of one of its columns."""
    return PurePath(name.partition(FILE_COLUMN)[0]).suffix == ".parquet"


def parts_of(name: str) -> list[str]:
    """The names that `+` joins."""
    return [name] if Path(name).is_file() else name.split("+")


def _label(name: str) -> str:
    if not is_path(name):
        return name
    path, _, column = name.partition(FILE_COLUMN)
    return "-".join(filter(None, (Path(path).stem, column)))


def load_features(name: str, item_ids: Any, repo: Path | None = None) -> Features:
    """Vectors by name.

    Args:
        name: `id`; a feature set of the repo, e.g. `sda`, or a version of it, `sda@526f`; one modality
            of it, `sda-text` or `sda-image`, or both in one space, `sda-shared`; a parquet file with
            `item_id` and columns of vectors, each a modality; one column of it,
            `file.parquet:text`; or several of these side by side, `sda+vanilla`.
        item_ids: Arrow strings [I]; item i has code i + 1.
        repo: an applied Feast repo; needed for a feature set.

    Raises:
        FeatureMismatchError: no item has a vector, or see `stored_vectors` and `read_vectors`.
        FeatureStoreError: the feature set cannot be read.
    """
    if name == IDS_ALONE:
        return Features(name, None, None, None)
    parts = parts_of(name)
    modalities: Matrices = {}
    versions = []
    for part in parts:
        found, version = _one_set(part, item_ids, repo)
        prefix = f"{_label(part)}/" if len(parts) > 1 else ""
        modalities |= {prefix + modality: matrix for modality, matrix in found.items()}
        versions.append(version)
    joined = None if None in versions else "+".join(map(str, versions))
    return Features(name, modalities, joined, _sha256(modalities))


def _one_set(name: str, item_ids: Any, repo: Path | None) -> tuple[Matrices, str | None]:
    """Vectors of one name, and their version if known."""
    if is_path(name):
        path, _, modality = name.partition(FILE_COLUMN)
        modalities, version, where = read_vectors(Path(path), item_ids), None, path
    else:
        whole, _, modality = name.partition("-")
        feature_set, _, of_version = whole.partition("@")
        if modality not in ("", SHARED, *MODALITIES) or feature_set in ("", IDS_ALONE):
            raise FeatureMismatchError(
                f"No features {name!r}. Expected {IDS_ALONE}, a feature set such as sda, one modality of it such as "
                f"sda-{MODALITIES[0]} or sda-{MODALITIES[1]}, both in one space as sda-{SHARED}, a parquet file, or "
                "several joined by +."
            )
        modalities, version = stored_vectors(repo or Path(), feature_set, item_ids, of_version or None)
        where = f"feature set {feature_set!r}"
    if modality == SHARED and SHARED not in modalities:
        return {SHARED: shared_space(modalities)}, version
    if modality and modality not in modalities:
        raise FeatureMismatchError(
            f"No item of the log has a vector of its {modality} in {where}; it has {', '.join(modalities)}."
        )
    return {modality: modalities[modality]} if modality else modalities, version


def shared_space(modalities: Matrices) -> NDArray[np.float32]:
    """One vector an item: the mean of those it has, each centred over its modality and at unit norm.

    It means something where a text and a picture of one item lie near each other, that is for adapted
    vectors; then an item that has a picture alone compares with one that has a text alone.

    Args:
        modalities: name -> float32 [I + 1, d], d the same for all; zero for missing vectors.

    Returns:
        float32 [I + 1, d] at unit norm; zero where no modality has a vector.

    Raises:
        FeatureMismatchError: the dimensions differ.
    """
    dims = {name: matrix.shape[1] for name, matrix in modalities.items()}
    if len(set(dims.values())) > 1:
        raise FeatureMismatchError(f"One space needs vectors of one dimension; got {dims}.")
    total = np.sum([unit_rows(matrix) for matrix in modalities.values()], axis=0)
    return unit_rows(total, centre=False)


def stored_vectors(
    repo: Path, feature_set: str, item_ids: Any, version: str | None = None
) -> tuple[Matrices, str | None]:
    """Vectors from Feast's offline store, and their adapter version; by default the live ones.

    Args:
        item_ids: Arrow strings [I]; item i has code i + 1.

    Returns:
        Modality -> float32 [I + 1, d]; zero in row 0 (padding) and for missing vectors. And the version.

    Raises:
        FeatureMismatchError: no item has a vector, or vectors of several versions are mixed.
        FeatureStoreError: see `load_vectors`.
    """
    from sda_features.feature_store.matrices import load_vectors
    from sda_features.recommenders.representations import align_vectors

    found = load_vectors(repo, feature_set, item_ids.to_pylist(), version=version)
    if len(found.versions) > 1:
        raise FeatureMismatchError(
            f"The vectors of feature set {feature_set!r} come from {len(found.versions)} adapter versions "
            f"({', '.join(found.versions)}) and do not lie in one space; materialize the whole catalogue again."
        )
    blocks = {"text": (found.text, found.text_found), "image": (found.image, found.image_found)}
    vectors = {
        name: align_vectors(item_ids, found.item_ids, matrix)
        for name, (matrix, mask) in blocks.items()
        if mask.any()
    }
    if not vectors:
        raise FeatureMismatchError(_no_vectors(item_ids, f"feature set {feature_set!r}"))
    return vectors, next(iter(found.versions), None)


def read_vectors(path: Path, item_ids: Any) -> Matrices:
    """Vectors from a parquet file: `item_id`, and each column of lists of numbers a modality.

    Args:
        path: the file; items that are not in `item_ids` are skipped, a null is a missing vector.
        item_ids: Arrow strings [I].

    Returns:
        Column -> float32 [I + 1, d]; zero in row 0 and for missing vectors.

    Raises:
        FeatureMismatchError: not such a file, vectors of one column that differ in length, an id
            that occurs twice, or no item has a vector.
    """
    from sda_features.recommenders.representations import align_vectors

    opened = open_table(path, "vectors", FeatureMismatchError)
    table = opened.read({name: ID if name == ITEM_ID else AS_IT_IS for name in opened.columns})
    names = [field.name for field in table.schema if _holds_vectors(field.type)]
    if ITEM_ID not in table.column_names or not names:
        raise FeatureMismatchError(
            f"{path}: expected a column {ITEM_ID} and at least one column of lists of numbers, got "
            f"{', '.join(f'{field.name} ({field.type})' for field in table.schema)}."
        )
    ids = table[ITEM_ID]
    columns = pa.table({name: table[name].cast(pa.list_(pa.float32())) for name in names})
    try:
        vectors = {
            name: align_vectors(item_ids, ids, matrix_of(columns[name])[0])
            for name in names
            if column_dim(columns, name)
        }
    except FeatureMismatchError as error:
        raise FeatureMismatchError(f"{path}: {error}") from None
    vectors = {name: matrix for name, matrix in vectors.items() if matrix.any()}
    if not vectors:
        raise FeatureMismatchError(_no_vectors(item_ids, str(path)))
    return vectors


def _holds_vectors(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)))


def _no_vectors(item_ids: Any, where: str) -> str:
    return (
        f"None of the {len(item_ids)} items of the log, such as {item_ids[0].as_py()!r}, has a vector in "
        f"{where}. Do the ids of log and catalogue agree?"
    )


def _sha256(modalities: Matrices) -> str:
    digest = hashlib.sha256()
    for name, matrix in modalities.items():
        digest.update(f"{name} {matrix.shape} ".encode())
        digest.update(np.ascontiguousarray(matrix, "<f4").data)
    return digest.hexdigest()
