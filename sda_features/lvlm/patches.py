"""Pictures as the patches that a Qwen-VL vision tower reads, and their embedding.

`Patcher` makes what transformers' image processor makes, to the last bit, for half of what that
costs beside scaling: a pixel has 256 values, so rescaling and normalising are a look-up in a table
that the processor itself fills, and pixels are cut into patches before they become wide numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize


class Patcher:
    """Callable: an RGB picture -> its patches in `dtype`, as a checkpoint's image processor makes them."""

    def __init__(self, processor: Any, dtype: torch.dtype):
        self._processor, self._dtype = processor, dtype
        self._plain = type(processor) is Qwen2VLImageProcessorPil and processor.do_resize
        if self._plain:
            levels = np.broadcast_to(np.arange(256, dtype=np.uint8), (3, 1, 256))
            if processor.do_rescale:
                levels = processor.rescale(levels, processor.rescale_factor)
            if processor.do_normalize:
                levels = processor.normalize(levels, processor.image_mean, processor.image_std)
            self._table = torch.from_numpy(levels.astype(np.float32)).to(dtype)[:, 0]  # [3, 256]

    def __call__(self, picture: Image) -> tuple[Tensor, Tensor]:
        """Patches [P, C * patch volume], and the grid int64 [3] in time, height and width; P is its product."""
        if not self._plain:  # another class, or one that leaves the size alone: it does all itself
            made = self._processor(images=[picture], return_tensors="pt")
            return made["pixel_values"].to(self._dtype), made["image_grid_thw"][0]
        processor = self._processor
        side, merged, times = processor.patch_size, processor.merge_size, processor.temporal_patch_size
        height, width = smart_resize(
            picture.height,
            picture.width,
            factor=side * merged,
            min_pixels=processor.size["shortest_edge"],
            max_pixels=processor.size["longest_edge"],
        )
        pixels = torch.from_numpy(np.array(picture.resize((width, height), processor.resample)))
        rows, columns = height // side, width // side
        # Patches that the tower merges lie together.
        cut = pixels.view(rows // merged, merged, side, columns // merged, merged, side, 3)
        levels = cut.permute(6, 0, 3, 1, 4, 2, 5).reshape(3, -1).int()
        values = torch.stack(
            [table.index_select(0, of) for table, of in zip(self._table, levels, strict=True)]
        )
        patches = values.view(3, rows * columns, 1, side * side).transpose(0, 1).expand(-1, -1, times, -1)
        return patches.flatten(1), torch.tensor([1, rows, columns])


class PatchEmbedding(nn.Module):
    """The patch convolution of a vision tower as the matrix product that it is: its stride is its kernel.

    The convolution is kept under its name, so that saved weights keep theirs.
    """

    def __init__(self, proj: nn.Conv3d):
        super().__init__()
        self.proj = proj

    def forward(self, patches: Tensor) -> Tensor:
        """[P, C * patch volume] -> [P, vision width], in the weights' dtype."""
        weight = self.proj.weight.flatten(1)  # [vision width, C * patch volume]
        return F.linear(patches.to(weight.dtype), weight, self.proj.bias)
