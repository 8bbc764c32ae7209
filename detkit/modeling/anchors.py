"""Anchors: a list of (width, height) per level, centred on the points of a grid with a step and a start.

Order: levels fine to coarse; in a level row-major over cells (y, x); in a cell the order of the list.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Shapes = Sequence[tuple[float, float]]


def retinanet_shapes(
    size: float, *, scales_per_octave: int, aspect_ratios: Sequence[float]
) -> list[tuple[float, float]]:
    """Return the (width, height) of RetinaNet's anchors on one level (section 4): scales outer, ratios inner.

    Scale i of S is size * 2^(i/S); a ratio is height over width and keeps the area.
    """
    shapes = []
    for i in range(scales_per_octave):
        area = (size * 2 ** (i / scales_per_octave)) ** 2
        for ratio in aspect_ratios:
            width = math.sqrt(area / ratio)
            shapes.append((width, ratio * width))
    return shapes


class AnchorGrid(nn.Module):
    """Makes the anchors of every level.

    Args:
        shapes: per level, (width, height) in pixels of each anchor of a cell; equally many on every level.
        strides: per level, pixels from one cell to the next.
        offset: where the first cell's centre lies, in strides: 0 is the corner of the picture (detectron2).
    """

    def __init__(self, *, shapes: Sequence[Shapes], strides: Sequence[int], offset: float = 0.0) -> None:
        super().__init__()
        if len(shapes) != len(strides):
            raise ValueError(f"anchors: {len(shapes)} lists of shapes for {len(strides)} levels of strides {strides}")
        counts = {len(level) for level in shapes}
        if len(counts) != 1 or 0 in counts:
            raise ValueError(
                f"anchors: every level needs the same number of shapes, at least one; got {sorted(counts)}"
            )
        self.num_anchors = counts.pop()
        self.strides = tuple(int(stride) for stride in strides)
        self.offset = float(offset)
        half_sizes = 0.5 * torch.tensor([list(level) for level in shapes], dtype=torch.float64)
        self.cell_anchors_LA4: Tensor
        cell_anchors_LA4 = torch.cat([-half_sizes, half_sizes], -1).float()
        self.register_buffer("cell_anchors_LA4", cell_anchors_LA4, persistent=False)

    def forward(self, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Return the anchors [H*W*A, 4] of every level for feature maps of these sizes (H, W)."""
        if len(sizes) != len(self.strides):
            raise ValueError(f"anchors: {len(sizes)} feature maps for {len(self.strides)} levels")
        return [self._level(level, height, width) for level, (height, width) in enumerate(sizes)]

    def sizes_for(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return the sizes of the feature maps of a padded input of height x width: divided by stride, rounded up."""
        return [(-(-height // stride), -(-width // stride)) for stride in self.strides]

    def _level(self, level: int, height: int, width: int) -> Tensor:
        stride, cell_A4 = self.strides[level], self.cell_anchors_LA4[level]
        x_W = (torch.arange(width, dtype=torch.float32, device=cell_A4.device) + self.offset) * stride
        y_H = (torch.arange(height, dtype=torch.float32, device=cell_A4.device) + self.offset) * stride
        x_HW, y_HW = x_W.expand(height, width), y_H[:, None].expand(height, width)
        centres_HW4 = torch.stack([x_HW, y_HW, x_HW, y_HW], -1)
        return (centres_HW4[:, :, None] + cell_A4).reshape(-1, 4)
