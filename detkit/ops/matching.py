"""Which anchor belongs to which ground truth."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from detkit.ops import _schema, reference

LowQuality = Literal["detectron2", "detectron", "off"]
_LOW_QUALITY = {"off": reference.OFF, "detectron2": reference.DETECTRON2, "detectron": reference.DETECTRON}


def match_anchors(
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_classes: Tensor,
    *,
    num_classes: int,
    positive_iou: float = 0.5,
    negative_iou: float = 0.4,
    low_quality: LowQuality = "detectron2",
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Assign each anchor to the ground truth it overlaps most (Lin et al. 2017, section 4), by IoU thresholds.

    An anchor's IoU decides its label: at least `positive_iou` the class of its ground truth, below `negative_iou`
    background, between them ignored. Low-quality matches: "detectron2" also makes those anchors positive whose IoU
    *equals* the largest IoU (above 0) that some ground truth has with any valid anchor, ties included; they keep the
    ground truth that they overlap most themselves. "detectron" then makes every anchor below `negative_iou` background
    again, so that only [negative_iou, positive_iou) is rescued. "off" does neither.

    The IoU is evaluated in float32 (float64 where an input is float64), operation by operation as
    `structures.boxes.box_iou` does, and counts as 0 where it is not a number; equal on every backend. Among equal
    overlaps the first ground truth wins.

    Args:
        anchors: [R, 4], or [N, R, 4] boxes that differ by image; xyxy.
        gt_boxes: [N, G, 4] xyxy, padded; G may be 0.
        gt_classes: [N, G] int64, 0..K-1; negative: padding, nobody's ground truth.
        num_classes: K, the number of foreground classes.
        positive_iou: threshold in [0, 1], at least `negative_iou`.
        negative_iou: threshold in [0, 1].
        low_quality: "detectron2", "detectron" or "off".
        valid: [N, R] bool, false for padding among the anchors; None: all are valid.

    Returns:
        labels [N, R] int64 (0..K-1 class, K background, -1 ignored or invalid), and matched [N, R] int64, the index of
        the ground truth that an anchor overlaps most (0 where the image has none or the anchor is invalid).

    Raises:
        ValueError: naming the argument and its shape, type or range. RuntimeError: a class of K or above, on the CPU
            only; elsewhere, where looking would cost a synchronisation, it becomes a label as it is. Not
            differentiable.
    """
    _check_options(num_classes, positive_iou, negative_iou, low_quality)
    _check_tensors(anchors, gt_boxes, gt_classes, valid)
    return _schema.OPS.match_anchors(
        anchors.detach(),
        gt_boxes.detach(),
        gt_classes,
        valid,
        num_classes,
        float(positive_iou),
        float(negative_iou),
        _LOW_QUALITY[low_quality],
    )


def _check_options(num_classes: int, positive_iou: float, negative_iou: float, low_quality: str) -> None:
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, not {num_classes}")
    if not 0 <= negative_iou <= positive_iou <= 1:
        raise ValueError(
            f"thresholds must satisfy 0 <= negative_iou <= positive_iou <= 1, not {negative_iou} and {positive_iou}"
        )
    if low_quality not in _LOW_QUALITY:
        raise ValueError(f"low_quality must be one of {sorted(_LOW_QUALITY)}, not {low_quality!r}")


def _check_tensors(anchors: Tensor, gt_boxes: Tensor, gt_classes: Tensor, valid: Tensor | None) -> None:
    _schema.check_dense(anchors=anchors, gt_boxes=gt_boxes, gt_classes=gt_classes)
    if anchors.dtype not in _schema.FLOATS or gt_boxes.dtype not in _schema.FLOATS:
        raise ValueError(
            f"anchors and gt_boxes must be floats of 16, 32 or 64 bits, not {anchors.dtype} and {gt_boxes.dtype}"
        )
    if gt_classes.dtype != torch.int64 or gt_classes.dim() != 2 or gt_boxes.shape != (*gt_classes.shape, 4):
        raise ValueError(
            f"gt_boxes and gt_classes must be [N, G, 4] and int64 [N, G], not {tuple(gt_boxes.shape)} and "
            f"{gt_classes.dtype} {tuple(gt_classes.shape)}"
        )
    images = gt_boxes.shape[0]
    if anchors.dim() not in (2, 3) or anchors.shape[-1] != 4 or (anchors.dim() == 3 and anchors.shape[0] != images):
        raise ValueError(f"anchors must be [R, 4] or [N, R, 4] with N = {images}, not {tuple(anchors.shape)}")
    if valid is not None and (valid.dtype != torch.bool or valid.shape != (images, anchors.shape[-2])):
        raise ValueError(f"valid must be bool [{images}, {anchors.shape[-2]}], not {valid.dtype} {tuple(valid.shape)}")
    devices = {t.device for t in (anchors, gt_boxes, gt_classes, valid) if t is not None}
    if len(devices) > 1:
        raise ValueError(f"all tensors must be on one device, not on {sorted(map(str, devices))}")
