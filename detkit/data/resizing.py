"""How libraries resize: the size that a picture gets, the filter, and what becomes of the boxes.

The two here average nothing where they shrink: bilinear between the four nearest pixels, centres at half pixels. Both
libraries subtract the mean (and torchvision divides by the deviation) before they resize; the filter is linear and its
weights add up to 1, so that comes to the same but for the rounding to whole grey levels here, at most half of one.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray


def detectron_size(size: tuple[int, int], shorter: int, max_size: int) -> tuple[tuple[int, int], float]:
    """Return (height, width) and the factor by which Detectron resizes a picture of `size`.

    The factor takes the shorter side to `shorter`, or the longer one to `max_size` where it would round to more; sides
    are rounded half to even, and at least 1. Source: Detectron, utils/blob.py.
    """
    factor = shorter / min(size)
    if round(factor * max(size)) > max_size:
        factor = max_size / max(size)
    return (max(1, round(factor * size[0])), max(1, round(factor * size[1]))), factor


def torchvision_size(size: tuple[int, int], shorter: int, max_size: int) -> tuple[int, int]:
    """Return (height, width) that torchvision resizes a picture of `size` to.

    The factor is the lesser of the two that take the shorter side to `shorter` and the longer one to `max_size`; sides
    are cut to whole pixels, and at least 1. Source: torchvision, models/detection/transform.py.
    """
    factor = min(shorter / min(size), max_size / max(size))
    return max(1, math.floor(size[0] * factor)), max(1, math.floor(size[1] * factor))


def bilinear(image: NDArray[np.uint8], size: tuple[int, int], factor: float | None = None) -> NDArray[np.uint8]:
    """Resize [H, W, 3] to (height, width) without averaging, rounded to whole grey levels.

    Pixel x lies at (x + 0.5) / factor - 0.5 of the old picture, clamped to it; without a factor, that of each axis is
    new / old, else `factor` is that of both (OpenCV, where it is given a factor and rounds the size).
    """
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    # The operation itself, as F.interpolate takes a size or a factor, not both.
    resized = torch.ops.aten.upsample_bilinear2d(pixels, list(size), False, factor, factor)
    return resized[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def scale_pixel_corners(boxes: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Scale boxes [g, 4] as Detectron does: the indices of their first and last pixels, x0 and x1 - 1, by `factor`.

    So a box that is w wide becomes factor * (w - 1) + 1 wide.
    """
    last = np.array([0, 0, 1, 1])
    return ((boxes - last) * factor + last).astype(np.float32)
