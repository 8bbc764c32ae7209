"""Boxes are xyxy: absolute pixels, continuous coordinates, width = x1 - x0 (no +1). Any other format is in the name."""

from __future__ import annotations

import torch
from torch import Tensor


def box_area(boxes: Tensor) -> Tensor:
    """Return the area of boxes [..., 4] as [...]; a box with a negative side has area 0."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def box_iou(boxes_A4: Tensor, boxes_B4: Tensor) -> Tensor:
    """Return intersection over union of every pair, [..., A, B]; 0 where two boxes do not meet or have no area."""
    low = torch.maximum(boxes_A4[..., :, None, :2], boxes_B4[..., None, :, :2])
    high = torch.minimum(boxes_A4[..., :, None, 2:], boxes_B4[..., None, :, 2:])
    sides = (high - low).clamp(min=0)
    inter = sides[..., 0] * sides[..., 1]
    union = box_area(boxes_A4)[..., :, None] + box_area(boxes_B4)[..., None, :] - inter
    return torch.where(inter > 0, inter / union, torch.zeros_like(inter))


def clip_boxes(boxes: Tensor, sizes_hw: Tensor) -> Tensor:
    """Clip boxes [..., R, 4] to pictures of size (height, width) [..., 2]."""
    limits = torch.cat([sizes_hw.flip(-1)] * 2, -1).to(boxes.dtype)[..., None, :]  # w, h, w, h
    return torch.minimum(boxes.clamp(min=0), limits)
