"""Memory of a GPU: what cards have, and one error that says what to do when it is used up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sda_features.errors import MemoryExhaustedError, SettingsError

GIB = 1 << 30
# Of a card's memory; the rest goes to the CUDA context, to libraries and to gaps between blocks.
USABLE = 0.92


@dataclass(frozen=True)
class Card:
    """A GPU as a plan sees it.

    Attributes:
        memory: bytes that its maker states.
        bfloat16: whether its cores multiply bfloat16.
    """

    name: str
    memory: int
    bfloat16: bool = True

    @property
    def usable(self) -> int:
        """Bytes that tensors may fill."""
        return int(self.memory * USABLE)


CARDS = {
    card.name.lower(): card
    for card in (
        Card("T4", 16 * GIB, bfloat16=False),
        Card("V100", 32 * GIB, bfloat16=False),
        *(Card(name, 24 * GIB) for name in ("A10", "L4", "RTX3090", "RTX4090")),
        *(Card(name, 48 * GIB) for name in ("A6000", "L40S")),
        Card("RTX5090", 32 * GIB),
        Card("A100-40", 40 * GIB),
        *(Card(name, 80 * GIB) for name in ("A100-80", "H100")),
        Card("H200", 141 * GIB),
        Card("B200", 180 * GIB),
    )
}


def find_card(name: str) -> Card:
    """A card by its name in `CARDS`, or by its memory, e.g. "24GiB".

    Raises:
        SettingsError: neither.
    """
    key = name.lower().replace(" ", "")
    if key in CARDS:
        return CARDS[key]
    with contextlib.suppress(ValueError):
        return Card(name, int(float(key.removesuffix("gib").removesuffix("gb")) * GIB))
    raise SettingsError(
        f"No card named {name!r}. Known are {', '.join(card.name for card in CARDS.values())}; or give the memory, "
        "such as 24GiB."
    )


def card_of(device: torch.device) -> Card | None:
    """The GPU of a device; None for a CPU."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return Card(properties.name, properties.total_memory, bfloat16)


@contextlib.contextmanager
def memory_advice(*options: str) -> Iterator[None]:
    """Raise a GPU's out-of-memory error as one that names the options which need less.

    Raises:
        MemoryExhaustedError: the block used up the memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        first = str(error).split(". ")[0]
        raise MemoryExhaustedError(
            f"{first}. Less memory is needed with a smaller {', with '.join(options)}; "
            "`sda-features adapt --dry-run` says what fits."
        ) from None
