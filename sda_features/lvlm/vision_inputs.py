"""What a vision tower and rotary positions need of a batch's picture sizes, worked out before the batch leaves the CPU.

transformers works these out of `grid_thw` inside its forward pass, layer by layer, and asks a GPU for
numbers it then waits for. Its towers also take them ready made; here they are made while the model
runs the batch before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import vision_utils

from sda_features.lvlm.attention import Windows


@dataclass(frozen=True)
class Pictures:
    """Everything about the pictures of a batch but their pixels.

    Attributes:
        positions: int64 [3, B, T], rotary positions of all tokens in time, height and width.
        places: int64 [V], where the picture tokens lie among the B T tokens, in order.
        tower: arguments of the vision tower beside patches and grids.
        windows: number of segments + 1 -> their layout, for the attention of the tower's layers.
    """

    positions: Tensor
    places: Tensor
    tower: dict[str, Any]
    windows: dict[int, Windows]

    def mapped(self, move: Callable[[Tensor], Tensor]) -> Pictures:
        """The same with each tensor moved."""
        tower = {name: move(of) if isinstance(of, Tensor) else of for name, of in self.tower.items()}
        windows = {bounds: layout.mapped(move) for bounds, layout in self.windows.items()}
        return Pictures(move(self.positions), move(self.places), tower, windows)


def picture_inputs(model: nn.Module, input_ids: Tensor, grids: Tensor, picture: int) -> Pictures:
    """The `Pictures` of a batch, on the CPU.

    Args:
        model: its settings are read, not its weights.
        input_ids: int64 [B, T].
        grids: int64 [B, 3], one picture a row.
        picture: id of the token that stands for a merged patch.
    """
    tower = tower_inputs(model.visual, grids)  # type: ignore[arg-type]
    segments = [tower[name] for name in ("cu_seqlens", "cu_window_seqlens") if name in tower]
    return Pictures(
        _positions(model, input_ids, grids, picture),
        (input_ids.flatten() == picture).nonzero().flatten(),
        tower,
        {len(bounds): Windows.of(bounds) for bounds in segments},
    )


def tower_inputs(visual: nn.Module, grids: Tensor) -> dict[str, Any]:
    """Arguments of a vision tower that follow from the grids alone."""
    config: Any = visual.config
    merged = config.spatial_merge_size
    bounds = vision_utils.get_vision_cu_seqlens(grids)
    inputs = {
        "position_ids": vision_utils.get_vision_position_ids(grids, merged),
        "cu_seqlens": bounds,
        "max_seqlen": int(bounds.diff().max()),
    }
    if hasattr(visual, "fullatt_block_indexes"):  # Qwen2.5-VL: most layers attend in windows
        index, windows = vision_utils.get_vision_window_index(
            grids, merged, config.window_size, config.patch_size
        )
        inputs |= {
            "window_index": index,
            "cu_window_seqlens": windows,
            "max_window_seqlen": int(windows.diff().max()),
        }
    if hasattr(visual, "num_grid_per_side"):  # Qwen3-VL: a learned table of positions, interpolated
        taps, weights = vision_utils.get_vision_interpolation_indices_and_weights(
            grids,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=merged,
        )
        inputs |= {"interp_indices": taps, "interp_weights": weights}
    return inputs


def _positions(model: nn.Module, input_ids: Tensor, grids: Tensor, picture: int) -> Tensor:
    """Rotary positions int64 [3, B, T]; those of one grid are computed once."""
    different, which = torch.unique(grids, dim=0, return_inverse=True)
    rows = input_ids[[int((which == kind).nonzero()[0]) for kind in range(len(different))]]
    positions: Tensor = model.get_rope_index(rows, (rows == picture).int(), different)[0]  # type: ignore[operator]
    return positions[:, which]


def add_at_pictures(states: Tensor, places: Tensor, features: Tensor) -> Tensor:
    """Qwen3-VL's deep features added to the states of the picture tokens, without asking where they are.

    [B, T, hidden], places int64 [V] among the B T positions, and [V, hidden] -> [B, T, hidden].
    """
    added = states.flatten(0, 1).index_add(0, places, features.to(states.dtype))
    return added.view_as(states)
