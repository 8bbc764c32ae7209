"""What a person would call right and wrong on one picture, to find the pictures worth looking at; no measure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.structures import Detections
from detkit.structures.boxes import box_area, box_iou


@dataclass(frozen=True)
class PictureErrors:
    """Counts of one picture.

    Attributes:
        right: detections that are an object's, at most one of each.
        false: the other detections, but for those on ignored regions.
        missed: objects without a detection.
    """

    right: int
    false: int
    missed: int

    @property
    def f1(self) -> float:
        """Twice the right ones over all detections and objects, 0..1; 1 where there is neither."""
        both = 2 * self.right + self.false + self.missed
        return 2 * self.right / both if both else 1.0


def picture_errors(
    detections: Detections, gt_boxes: Tensor, gt_classes: Tensor, ignored: Tensor, *, iou_threshold: float = 0.5
) -> PictureErrors:
    """Return the counts of a picture; every detection counts, so cut them at a score first.

    By falling score each detection takes the free object of its class with the largest IoU, if that is at least the
    threshold. A detection that takes none and lies on an ignored region of its class by at least that share of its own
    area is left out (as COCO does with crowds).

    Args:
        detections: D of them, by falling score.
        gt_boxes: [G, 4] xyxy.
        gt_classes: [G].
        ignored: bool [G], true for a region that is no object to be found.
    """
    same_DG = detections.classes[:, None] == gt_classes
    iou_DG = torch.where(same_DG & ~ignored, box_iou(detections.boxes, gt_boxes), 0.0)
    inside_DG = torch.where(same_DG & ignored, _share_inside(detections.boxes, gt_boxes), 0.0)
    right = false = 0
    for iou_G, inside_G in zip(iou_DG, inside_DG, strict=True):
        if len(iou_G) and iou_G.max() >= iou_threshold:
            right += 1
            iou_DG[:, iou_G.argmax()] = 0  # taken
        elif not (inside_G >= iou_threshold).any():
            false += 1
    return PictureErrors(right, false, int((~ignored).sum()) - right)


def _share_inside(boxes_D4: Tensor, regions_G4: Tensor) -> Tensor:
    """Return the share of each box's area that lies in each region, [D, G]."""
    low = torch.maximum(boxes_D4[:, None, :2], regions_G4[:, :2])
    high = torch.minimum(boxes_D4[:, None, 2:], regions_G4[:, 2:])
    return box_area(torch.cat([low, high], -1)) / box_area(boxes_D4)[:, None].clamp(min=1e-9)
