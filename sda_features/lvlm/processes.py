"""Several training processes (`accelerate launch`) that together take one step on one global batch.

Each process encodes its slice of the batch and sees everybody's vectors, so the contrastive loss is
that of the whole batch; summing parameter gradients over processes gives exactly the gradient that
one process with the whole batch would have.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather, reduce
from numpy.typing import NDArray
from torch import Tensor, nn

from sda_features.errors import SettingsError

# Others wait while the first process reads a catalogue or saves; NCCL's is 10 minutes.
PATIENCE = timedelta(hours=6)


class Processes:
    """This process among all; alone unless `accelerate launch` started several.

    With the device "cpu" these talk through gloo.
    """

    def __init__(self, device: str = "auto"):
        self._state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
        self.count: int = self._state.num_processes
        self.rank: int = self._state.process_index
        self.is_main: bool = self._state.is_main_process

    def wait(self) -> None:
        """Block until every process is here."""
        self._state.wait_for_everyone()

    def broadcast(self, measures: dict[str, float]) -> dict[str, float]:
        """Those of the main process, in every process: what each would round its own way, one decides."""
        received: dict[str, float] = broadcast_object_list([measures])[0]
        return received

    def share(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """This process's slice of a batch.

        Raises:
            SettingsError: the batch does not split into equal slices.
        """
        if len(indices) % self.count:
            raise SettingsError(
                f"A batch of {len(indices)} items does not split over {self.count} processes; choose --batch-size "
                "as a multiple, or leave out fewer items."
            )
        return np.split(indices, self.count)[self.rank]

    def all_gather_with_grad(self, vectors: Tensor) -> Tensor:
        """The vectors of all processes in rank order, [N, d]; only this process's carry a graph."""
        if self.count == 1:
            return vectors
        parts = list(gather(vectors.detach().contiguous()).chunk(self.count))
        parts[self.rank] = vectors
        return torch.cat(parts)

    def gather(self, values: Tensor) -> Tensor:
        """Concatenate over processes along the first dimension."""
        return gather(values) if self.count > 1 else values  # type: ignore[no-any-return]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over processes, in one message: there are hundreds of small ones."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.count == 1 or not gradients:
            return
        total = reduce(torch.cat([gradient.flatten() for gradient in gradients]), "sum")
        parts = total.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
