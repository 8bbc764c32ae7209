"""Box losses (socket BOX_LOSSES). M boxes, of any leading shape."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from detkit.modeling.box_coder import BoxCoder
from detkit.registry import BOX_LOSSES
from detkit.structures.boxes import box_area


@BOX_LOSSES.register()
class SmoothL1:
    """Smooth L1 on deltas, summed over the four (Fast R-CNN, eq. 3, with the bend at beta instead of 1).

    Args:
        beta: where the square 0.5 d^2 / beta turns into the line |d| - 0.5 beta; 0 is L1.
    """

    def __init__(self, *, beta: float = 0.11) -> None:
        if beta < 0:
            raise ValueError(f"SmoothL1: beta {beta} is below 0")
        self.beta = beta

    def __call__(self, deltas_M4: Tensor, anchors_M4: Tensor, gt_boxes_M4: Tensor, coder: BoxCoder) -> Tensor:
        """Return the loss per box [M], at least float32."""
        targets_M4 = coder.encode(anchors_M4, gt_boxes_M4)
        deltas_M4 = deltas_M4.to(targets_M4.dtype)
        return F.smooth_l1_loss(deltas_M4, targets_M4, beta=self.beta, reduction="none").sum(-1)


@BOX_LOSSES.register()
class GIoU:
    """1 - generalised intersection over union of the decoded box (Rezatofighi et al. 2019); in [0, 2]."""

    def __call__(self, deltas_M4: Tensor, anchors_M4: Tensor, gt_boxes_M4: Tensor, coder: BoxCoder) -> Tensor:
        """Return the loss per box [M], at least float32; finite for boxes without area."""
        boxes_M4 = coder.decode(deltas_M4, anchors_M4)
        low = torch.maximum(boxes_M4[..., :2], gt_boxes_M4[..., :2])
        high = torch.minimum(boxes_M4[..., 2:], gt_boxes_M4[..., 2:])
        inter = _area((high - low).clamp(min=0))
        union = box_area(boxes_M4) + box_area(gt_boxes_M4) - inter
        hull_low = torch.minimum(boxes_M4[..., :2], gt_boxes_M4[..., :2])
        hull_high = torch.maximum(boxes_M4[..., 2:], gt_boxes_M4[..., 2:])
        hull = _area(hull_high - hull_low)
        tiny = torch.finfo(hull.dtype).eps
        return 1 - inter / (union + tiny) + (hull - union) / (hull + tiny)


def _area(sides_M2: Tensor) -> Tensor:
    return torch.mul(*sides_M2.unbind(-1))  # not prod, whose gradient waits for the device to count zeros
