"""Which ground truth an anchor belongs to, if any (socket ASSIGNERS)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from detkit import ops
from detkit.registry import ASSIGNERS


@ASSIGNERS.register()
class IoUAssigner:
    """Assigns by intersection over union with an anchor's best ground truth (RetinaNet, section 4, "Anchors").

    Args:
        positive_iou: at least this: the anchor belongs to the ground truth.
        negative_iou: below this: background. Between the two an anchor is ignored.
        low_quality: "detectron2": the best anchors of a ground truth belong to their own best ground truth at any IoU;
            "detectron": the same, but not below negative_iou; "off": no such rule.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        positive_iou: float = 0.5,
        negative_iou: float = 0.4,
        low_quality: Literal["detectron2", "detectron", "off"] = "detectron2",
    ) -> None:
        if not 0 <= negative_iou <= positive_iou <= 1:
            raise ValueError(
                f"IoUAssigner: needs 0 <= negative_iou <= positive_iou <= 1, not {negative_iou} and {positive_iou}"
            )
        self.num_classes = num_classes
        self.positive_iou = positive_iou
        self.negative_iou = negative_iou
        self.low_quality = low_quality

    @torch.no_grad()
    def __call__(
        self, anchors: Tensor, gt_boxes_NG4: Tensor, gt_classes_NG: Tensor, *, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return labels [N, R] and the index of each anchor's ground truth [N, R]; without any, all is background.

        Anchors are [R, 4], or [N, R, 4] where they differ by image; where `valid` [N, R] is false the label is -1.
        """
        return ops.match_anchors(
            anchors,
            gt_boxes_NG4,
            gt_classes_NG,
            num_classes=self.num_classes,
            positive_iou=self.positive_iou,
            negative_iou=self.negative_iou,
            low_quality=self.low_quality,
            valid=valid,
        )
