"""Torch devices by name, and one message for one that this machine does not have."""

from __future__ import annotations

import torch

from sda_features.errors import SettingsError


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is cuda when there is one, else cpu.

    Raises:
        SettingsError: the machine, or this build of torch, does not have it.
    """
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    count = {
        "cuda": torch.cuda.device_count,
        "xpu": torch.xpu.device_count,
        "mps": lambda: int(torch.backends.mps.is_available()),
    }.get(device.type)
    if count is not None and (device.index or 0) >= count():
        raise SettingsError(
            f"There is no device {name} here: torch {torch.__version__} sees {count()} of {device.type}. "
            "Name another --device, or auto; a GPU needs its driver and a build of torch for it."
        )
    return device
