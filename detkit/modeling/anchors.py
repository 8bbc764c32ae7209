"""Anchors: a list of (width, height) per level, centred on the points of a grid with a step and a start.

Order: levels fine to coarse; in a level row-major over cells (y, x); in a cell the order of the list.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Shapes = Sequence[tuple[float, float]]
Rounding = Literal["none", "detectron", "torchvision"]
Steps = Literal["strides", "input"]


def level_shapes(
    size: float,
    stride: float,
    *,
    scales_per_octave: int,
    aspect_ratios: Sequence[float],
    rounding: Rounding = "none",
) -> list[tuple[float, float]]:
    """Return the (width, height) of the anchors on one level: scales outer, ratios inner, rounded as `rounding` says.

    "none": not at all; "detectron": as `detectron_shapes`; "torchvision": as `torchvision_shapes`, which also say the
    errors. Sizes and strides are in pixels.
    """
    if rounding == "detectron":
        return detectron_shapes(size, stride, scales_per_octave=scales_per_octave, aspect_ratios=aspect_ratios)
    make = torchvision_shapes if rounding == "torchvision" else retinanet_shapes
    return make(size, scales_per_octave=scales_per_octave, aspect_ratios=aspect_ratios)


def retinanet_shapes(
    size: float, *, scales_per_octave: int, aspect_ratios: Sequence[float]
) -> list[tuple[float, float]]:
    """Return the (width, height) of RetinaNet's anchors on one level (section 4): scales outer, ratios inner.

    Scale i of S is size * 2^(i/S); a ratio is height over width and keeps the area. Raises ValueError where there would
    be no anchor, or one without area.
    """
    _check(size, scales_per_octave, aspect_ratios)
    shapes = []
    for i in range(scales_per_octave):
        area = (size * 2 ** (i / scales_per_octave)) ** 2
        for ratio in aspect_ratios:
            width = math.sqrt(area / ratio)
            shapes.append((width, ratio * width))
    return shapes


def detectron_shapes(
    size: float, stride: float, *, scales_per_octave: int, aspect_ratios: Sequence[float]
) -> list[tuple[float, float]]:
    """Return the (width, height) of Detectron's anchors on one level: scales outer, ratios inner.

    A cell (stride x stride) is given each ratio, its sides rounded to whole pixels, half to even; the rounded shape is
    then scaled, by size * 2^(i/S) / stride. So areas are near those of `retinanet_shapes`, not equal (stride 8, ratio
    1/2: 44 x 24). Detectron centres them on cells: offset 0.5. Raises ValueError as `retinanet_shapes` does, and where
    a side rounds to 0. Source: Detectron, modeling/generate_anchors.py; its inclusive corner x1 is x1 + 1 here.
    """
    _check(size, scales_per_octave, aspect_ratios)
    bases = []
    for ratio in aspect_ratios:
        width = round(stride / math.sqrt(ratio))
        bases.append((width, round(width * ratio)))
    if not all(width and height for width, height in bases):
        raise ValueError(
            f"anchors: on stride {stride} Detectron's rounding makes a side of 0 of the ratios {tuple(aspect_ratios)}: "
            f"(width, height) {bases}; take ratios nearer to 1, or rounding 'none'"
        )
    factors = [size * 2 ** (i / scales_per_octave) / stride for i in range(scales_per_octave)]
    return [(width * factor, height * factor) for factor in factors for width, height in bases]


def torchvision_shapes(
    size: float, *, scales_per_octave: int, aspect_ratios: Sequence[float]
) -> list[tuple[float, float]]:
    """Return the (width, height) of torchvision's anchors on one level: scales outer, ratios inner.

    Scales are cut to whole pixels (32, 40, 50), then half of each side is rounded, half to even. torchvision itself
    has ratios outer. Raises ValueError as `retinanet_shapes` does, and where a side rounds to 0. Source: torchvision,
    models/detection/retinanet.py and anchor_utils.py.
    """
    _check(size, scales_per_octave, aspect_ratios)
    scales = [int(size * 2 ** (i / scales_per_octave)) for i in range(scales_per_octave)]
    roots = [math.sqrt(ratio) for ratio in aspect_ratios]
    shapes = [(2.0 * round(scale / root / 2), 2.0 * round(scale * root / 2)) for scale in scales for root in roots]
    if not all(width and height for width, height in shapes):
        raise ValueError(
            f"anchors: of size {size} torchvision's rounding makes a side of 0: (width, height) {shapes}; take a "
            "larger size, or rounding 'none'"
        )
    return shapes


def _check(size: float, scales_per_octave: int, aspect_ratios: Sequence[float]) -> None:
    if not size > 0:
        raise ValueError(f"anchors: the base size {size} of a level must be above 0 (pixels)")
    if scales_per_octave < 1:
        raise ValueError(f"anchors: scales_per_octave {scales_per_octave} is below 1; 1 is the base size alone")
    if not aspect_ratios or not all(ratio > 0 for ratio in aspect_ratios):
        raise ValueError(
            f"anchors: aspect_ratios {tuple(aspect_ratios)} must be one or more positive numbers (height over width)"
        )


class AnchorGrid(nn.Module):
    """Makes the anchors of every level.

    Args:
        shapes: per level, (width, height) in pixels of each anchor of a cell, at least one.
        strides: per level, pixels from one cell to the next.
        offset: where the first cell's centre lies, in strides: 0 is the corner of the picture (detectron2), 0.5 the
            centre of the cell (Detectron).
        steps: from one cell to the next: the "strides", or (torchvision) the padded "input"'s size over that of the
            feature map, cut to whole pixels: at a height of 800, P7 has 7 rows, 114 pixels apart instead of 128.

    `num_anchors` is how many anchors a cell of each level has.
    """

    def __init__(
        self, *, shapes: Sequence[Shapes], strides: Sequence[float], offset: float = 0.0, steps: Steps = "strides"
    ) -> None:
        super().__init__()
        if len(shapes) != len(strides):
            raise ValueError(f"anchors: {len(shapes)} lists of shapes for {len(strides)} levels of strides {strides}")
        self.num_anchors = tuple(len(level) for level in shapes)
        if 0 in self.num_anchors:
            raise ValueError(f"anchors: every level needs at least one shape; the levels have {self.num_anchors}")
        self.strides = tuple(float(stride) for stride in strides)
        self.offset = float(offset)
        self.steps = steps
        for level, sizes in enumerate(shapes):
            half_A2 = 0.5 * torch.tensor(list(sizes), dtype=torch.float64)
            cell_A4 = torch.cat([-half_A2, half_A2], -1).float()
            self.register_buffer(f"cell_anchors_{level}", cell_A4, persistent=False)

    @property
    def cell_anchors(self) -> list[Tensor]:
        """The anchors [A, 4] of every level in a cell whose centre is (0, 0)."""
        return [self.get_buffer(f"cell_anchors_{level}") for level in range(len(self.strides))]

    def forward(self, sizes: Sequence[tuple[int, int]], input_size: tuple[int, int] | None = None) -> list[Tensor]:
        """Return the anchors [H*W*A, 4] of every level for feature maps of these sizes (H, W).

        `input_size` is the padded (height, width) that the maps are of; without it, "input" steps are a ValueError.
        """
        if len(sizes) != len(self.strides):
            raise ValueError(f"anchors: {len(sizes)} feature maps for {len(self.strides)} levels")
        levels = zip(self.cell_anchors, self._steps(sizes, input_size), sizes, strict=True)
        return [self._level(cell_A4, step, size) for cell_A4, step, size in levels]

    def _steps(self, sizes: Sequence[tuple[int, int]], input_size: tuple[int, int] | None) -> list[tuple[float, float]]:
        """Return the pixels from one cell to the next, down and across, of every level."""
        if self.steps == "strides":
            return [(stride, stride) for stride in self.strides]
        if input_size is None:
            raise ValueError("anchors: 'input' steps depend on the padded input; give its size (height, width), too")
        return [(float(input_size[0] // height), float(input_size[1] // width)) for height, width in sizes]

    def sizes_for(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return the sizes of the feature maps of a padded input of height x width: divided by stride, rounded up."""
        return [(math.ceil(height / stride), math.ceil(width / stride)) for stride in self.strides]

    def best_ious(self, boxes_B4: Tensor, sizes_B2: Tensor) -> Tensor:
        """Return the largest IoU that any anchor has with each box, [B] in 0..1, float64; B may be 0.

        `sizes_B2` is the padded (height, width) of each box's input. Costs B x shapes, not B x anchors: of the anchors
        of one shape, the one centred nearest to the box overlaps it most. The answer is on the anchors' device.
        """
        device = self.cell_anchors[0].device
        boxes_B4, sizes_B2 = boxes_B4.to(device).double(), sizes_B2.to(device)
        best_B = boxes_B4.new_zeros(len(boxes_B4))
        low_B2, high_B2 = boxes_B4[:, :2], boxes_B4[:, 2:]
        for cell_A4, stride in zip(self.cell_anchors, self.strides, strict=True):
            half_A2 = cell_A4[:, 2:].double()
            cells_B2 = torch.ceil(sizes_B2.flip(1) / stride)  # x, y
            step: float | Tensor = stride if self.steps == "strides" else sizes_B2.flip(1) // cells_B2
            place_B2 = ((low_B2 + high_B2) / 2 / step - self.offset).round().clamp(min=0)
            centre_B12 = ((torch.minimum(place_B2, cells_B2 - 1) + self.offset) * step)[:, None]
            sides_BA2 = torch.minimum(high_B2[:, None], centre_B12 + half_A2)
            sides_BA2 = sides_BA2 - torch.maximum(low_B2[:, None], centre_B12 - half_A2)
            inter_BA = sides_BA2.clamp(min=0).prod(-1)
            union_BA = (high_B2 - low_B2).prod(-1)[:, None] + (2 * half_A2).prod(-1) - inter_BA
            best_B = torch.maximum(best_B, (inter_BA / union_BA).amax(1))
        return best_B

    def _level(self, cell_A4: Tensor, step: tuple[float, float], size: tuple[int, int]) -> Tensor:
        height, width = size
        x_W = (torch.arange(width, dtype=torch.float32, device=cell_A4.device) + self.offset) * step[1]
        y_H = (torch.arange(height, dtype=torch.float32, device=cell_A4.device) + self.offset) * step[0]
        x_HW, y_HW = x_W.expand(height, width), y_H[:, None].expand(height, width)
        centres_HW4 = torch.stack([x_HW, y_HW, x_HW, y_HW], -1)
        return (centres_HW4[:, :, None] + cell_A4).reshape(-1, 4)
