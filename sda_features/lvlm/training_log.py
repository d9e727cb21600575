"""One JSON line for each training step, and TensorBoard for those who want it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from sda_features.artifacts import atomic_file, to_json


class TrainingLog:
    """`training_log.jsonl` in a run folder.

    Args:
        first_step: records from this step on, which a killed run may have left, are dropped.
        enabled: False writes nothing (all processes but the main one).
        tensorboard: also write event files to `folder`/tensorboard.

    Raises:
        ModuleNotFoundError: TensorBoard was asked for and is not installed.
    """

    def __init__(self, folder: Path, first_step: int, enabled: bool, tensorboard: bool):
        self._stream: TextIO | None = None
        self._waiting: list[tuple[int, dict[str, float | Tensor]]] = []
        self._events: Any = None
        if not enabled:
            return
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)  # type: ignore[no-untyped-call]
        path = folder / "training_log.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        with atomic_file(path) as temporary:
            temporary.write_text("".join(lines[:first_step]), encoding="utf-8")
        self._stream = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - closed in `close`

    def write(self, step: int, record: dict[str, float | Tensor]) -> None:
        """Append one record when `flush` is next called; a scalar on a GPU is not waited for until then."""
        if self._stream is not None:
            self._waiting.append((step, record))

    def flush(self) -> dict[str, float]:
        """Write the records that wait, with one copy from the GPU; numbers that are not finite become null.

        Returns:
            The last record; empty if none waited.
        """
        values = [value for _, record in self._waiting for value in record.values()]
        scalars = [value.detach().double() for value in values if isinstance(value, Tensor)]
        read = iter(torch.stack(scalars).tolist() if scalars else ())
        numbers: dict[str, float] = {}
        for step, record in self._waiting:
            numbers = {name: next(read) if isinstance(of, Tensor) else of for name, of in record.items()}
            assert self._stream is not None
            self._stream.write(to_json({"step": step, **numbers}) + "\n")
            if self._events is not None:
                for name, number in numbers.items():
                    self._events.add_scalar(name, number, step)
        self._waiting.clear()
        return numbers

    def close(self) -> None:
        """Write the records that wait, and close the files."""
        self.flush()
        if self._stream is not None:
            self._stream.close()
        if self._events is not None:
            self._events.close()
