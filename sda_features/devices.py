"""Torch devices by name, and one message for one that this machine does not have."""

from __future__ import annotations

from typing import Any

import torch

from sda_features.errors import SettingsError


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is cuda when there is one, else cpu.

    Raises:
        SettingsError: the machine, or this build of torch, does not have it.
    """
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    if device.type not in ("cuda", "xpu", "mps"):
        return device
    backend: Any = getattr(torch, device.type)
    count = backend.device_count()
    if (device.index or 0) >= count:
        raise SettingsError(
            f"There is no device {name} here: torch {torch.__version__} sees {count} of {device.type}. "
            "Name another --device, or auto; a GPU needs its driver and a build of torch for it."
        )
    return device
