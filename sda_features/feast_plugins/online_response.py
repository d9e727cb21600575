"""A response of `get_online_features` that keeps bytes and makes Python objects when asked."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from feast.online_response import OnlineResponse
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse
from feast.value_type import ValueType

from sda_features.errors import FeatureMismatchError
from sda_features.serving import codec
from sda_features.serving.blocks import Block
from sda_features.serving.codec import Mask, Matrix
from sda_features.serving.wire import Row


@dataclass(frozen=True)
class Recorded:
    """What Redis sent for a request of n ids."""

    join_key: str  # name of the ids in the response
    ids: Sequence[str | int]  # n
    features: Mapping[str, int]  # names in the response -> position in a row
    # Values of each id, [n]; None where the hash has no such field. A block has all.
    rows: Sequence[Row] | Block
    to_proto: Callable[[], GetOnlineFeaturesResponse]  # makes of the rows what stock Feast makes of them


class VectorOnlineResponse(OnlineResponse):  # type: ignore[misc]
    """Feast's response with `to_matrix`. Everything else gives what it gives in stock Feast."""

    _recorded: Recorded | None = None

    @classmethod
    def lazy(cls, recorded: Recorded, feature_types: Mapping[str, ValueType]) -> VectorOnlineResponse:
        """A response whose `proto` is made when somebody asks for it."""
        response = cls.__new__(cls)
        response._recorded = recorded
        response._feature_types = dict(feature_types)
        return response

    @functools.cached_property
    def proto(self) -> GetOnlineFeaturesResponse:
        """The response as stock Feast makes it, values, statuses and event timestamps."""
        assert self._recorded is not None
        return self._recorded.to_proto()

    def to_matrix(self, feature: str) -> tuple[Matrix, Mask]:
        """The vectors of a feature as one matrix, row i for row i of the request.

        Args:
            feature: its name in the response: `feature`, or `view__feature` with full names.

        Returns:
            matrix: float32 [n, d], zero where not found; `torch.from_numpy` shares its memory. d is
                0 if no row was found.
            found: bool [n]; False where the item is unknown or its vector null.

        Raises:
            FeatureMismatchError: the feature was not requested, or its values are not vectors of
                one dimension and store dtype.
        """
        if (matrix := self._from_block(feature)) is not None:
            return matrix, np.ones(len(matrix), np.bool_)
        ids, values = self._values(feature)
        dim = next(
            (codec.vector_dim(value, name) for value, name in zip(values, ids, strict=True) if value), 0
        )
        return codec.decode_vectors(values, dim, names=ids)

    def to_dict(self, include_event_timestamps: bool = False) -> dict[str, Any]:
        """Names in the response -> Python values, as stock Feast gives them."""
        recorded = self._recorded
        if recorded is None or include_event_timestamps:
            return super().to_dict(include_event_timestamps)  # type: ignore[no-any-return]
        try:
            columns = {feature: self._to_list(feature) for feature in recorded.features}
        except FeatureMismatchError:
            return super().to_dict()  # type: ignore[no-any-return]
        return {recorded.join_key: list(recorded.ids), **columns}

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.proto.SerializeToString(), self._feature_types)

    def _from_block(self, feature: str) -> Matrix | None:
        """The matrix of a feature whose values came as one block; None if it has to be made of single values."""
        recorded = self._recorded
        if recorded is None or not isinstance(recorded.rows, Block) or feature not in recorded.features:
            return None
        column = recorded.rows.column(recorded.features[feature])
        if not column.shape[1]:  # nulls alone
            return None
        return codec.decode_block(column, codec.vector_dim(column[0].tobytes(), recorded.ids[0]))

    def _values(self, feature: str) -> tuple[Sequence[object], list[bytes | None]]:
        """Whose values they are, and the n values of a feature as ValueProtos."""
        recorded = self._recorded
        names = list(recorded.features if recorded else self.proto.metadata.feature_names.val)
        if feature not in names:
            raise FeatureMismatchError(
                f"Expected a feature of the response, one of {names}, got {feature!r}."
            )
        if recorded:
            position = recorded.features[feature]
            if isinstance(recorded.rows, Block):
                return recorded.ids, [value.tobytes() for value in recorded.rows.column(position)]
            return recorded.ids, [row[position] for row in recorded.rows]
        values = self.proto.results[names.index(feature)].values
        return range(len(values)), [value.SerializeToString() for value in values]

    def _to_list(self, feature: str) -> list[Any]:
        """The values of a feature as Python lists of floats, or as strings.

        Raises:
            FeatureMismatchError: they are something else.
        """
        feature_type = self._feature_types[feature]
        if feature_type is ValueType.STRING:
            return [codec.decode_string(value) for value in self._values(feature)[1]]
        if feature_type is not ValueType.FLOAT_LIST:
            raise FeatureMismatchError(f"Expected a list of floats or a string, got {feature_type.name}.")
        matrix, found = self.to_matrix(feature)
        return [row if there else None for row, there in zip(matrix.tolist(), found.tolist(), strict=True)]


def rows_of(rows: Sequence[Row] | Block) -> Sequence[Row]:
    """Rows as one object a value."""
    return list(rows) if isinstance(rows, Block) else rows


def _restore(serialized: bytes, feature_types: Mapping[str, ValueType]) -> VectorOnlineResponse:
    return VectorOnlineResponse(GetOnlineFeaturesResponse.FromString(serialized), feature_types)
