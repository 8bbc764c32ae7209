"""From scores and deltas to detections (RetinaNet, section 4, "Inference"), in composable pieces.

Legend: N images, R anchors of a level, K classes, C candidates; a candidate of score -inf is none (static shapes).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detkit import ops
from detkit.modeling.box_coder import BoxCoder
from detkit.structures import Detections
from detkit.structures.boxes import clip_boxes


class Candidates(NamedTuple):
    """The best (anchor, class) pairs of every image, [N, C, 4], [N, C] and [N, C]; -inf where fewer passed."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor


def top_candidates(
    scores_NRK: Tensor, deltas_NR4: Tensor, anchors_R4: Tensor, coder: BoxCoder, *, score_threshold: float, topk: int
) -> Candidates:
    """Return the `topk` best (anchor, class) pairs of score > `score_threshold`, by falling score, boxes decoded."""
    num_classes = scores_NRK.shape[-1]
    scores_NRK = scores_NRK.where(scores_NRK > score_threshold, -torch.inf)  # NaN passes no threshold
    # The topk best pairs lie in the topk anchors of best score: two small selections instead of one over R * K.
    rows_NT = scores_NRK.amax(-1).topk(min(topk, scores_NRK.shape[1]), dim=1).indices
    pairs = scores_NRK.gather(1, rows_NT[..., None].expand(-1, -1, num_classes)).flatten(1)
    scores_NC, pairs_NC = pairs.topk(min(topk, pairs.shape[1]), dim=1)
    rows_NC = rows_NT.gather(1, pairs_NC // num_classes)
    deltas_NC4 = deltas_NR4.gather(1, rows_NC[..., None].expand(-1, -1, 4))
    return Candidates(coder.decode(deltas_NC4, anchors_R4[rows_NC]), scores_NC, pairs_NC % num_classes)


def join(levels: list[Candidates]) -> Candidates:
    """Return the candidates of several levels side by side."""
    return Candidates(*(torch.cat(parts, 1) for parts in zip(*levels, strict=True)))


def suppress(candidates: Candidates, groups_NC: Tensor, *, nms_iou: float, max_detections: int) -> list[Detections]:
    """Return per image what non-maximum suppression leaves, at most `max_detections`, by falling score.

    Boxes suppress one another within a group only: `groups_NC`, int64, holds the classes, the levels or the like.
    """
    detections = []
    for boxes, scores, classes, groups in zip(*candidates, groups_NC, strict=True):
        exists = scores > -torch.inf
        boxes, scores, classes = boxes[exists], scores[exists], classes[exists]
        kept = ops.batched_nms(boxes, scores, groups[exists], nms_iou, max_keep=max_detections)
        detections.append(Detections(boxes[kept], scores[kept], classes[kept]))
    return detections


def to_original(detections: Detections, image_size: Tensor, original_size: Tensor) -> Detections:
    """Scale boxes from a resized picture (height, width) to the original one, clip them, drop those without area."""
    scale = (original_size / image_size).float().flip(-1).repeat(2)  # x, y, x, y
    boxes = clip_boxes(detections.boxes * scale, original_size)
    keep = (boxes[:, 2:] > boxes[:, :2]).all(-1)  # false for NaN, too
    return Detections(boxes[keep], detections.scores[keep], detections.classes[keep])


class PostProcess:
    """Threshold and top-k per level, decode, non-maximum suppression per class, best of all, original pixels."""

    def __init__(
        self,
        *,
        box_coder: BoxCoder,
        score_threshold: float = 0.05,
        topk_per_level: int = 1000,
        nms_iou: float = 0.5,
        max_detections: int = 100,
    ) -> None:
        if topk_per_level < 1 or max_detections < 1:
            raise ValueError(
                f"post-processing: topk_per_level {topk_per_level} and max_detections {max_detections} must be positive"
            )
        if not 0 <= score_threshold < 1:
            raise ValueError(
                f"post-processing: score_threshold {score_threshold} is not in [0, 1); scores must be above it, "
                "0 keeps every positive one"
            )
        if not 0 <= nms_iou <= 1:
            raise ValueError(f"post-processing: nms_iou {nms_iou} is not in [0, 1]; 1 suppresses nothing")
        self.box_coder = box_coder
        self.score_threshold = score_threshold
        self.topk_per_level = topk_per_level
        self.nms_iou = nms_iou
        self.max_detections = max_detections

    def __call__(
        self,
        scores: list[Tensor],
        deltas: list[Tensor],
        anchors: list[Tensor],
        *,
        image_sizes: Tensor,
        original_sizes: Tensor,
    ) -> list[Detections]:
        """Return the detections of every image from per-level scores [N, R, K], deltas [N, R, 4], anchors [R, 4].

        `image_sizes` and `original_sizes` are [N, 2] (height, width) of the resized and the original pictures.
        """
        levels = [
            top_candidates(*level, self.box_coder, score_threshold=self.score_threshold, topk=self.topk_per_level)
            for level in zip(scores, deltas, anchors, strict=True)
        ]
        candidates = join(levels)
        found = suppress(candidates, candidates.classes, nms_iou=self.nms_iou, max_detections=self.max_detections)
        return [to_original(*image) for image in zip(found, image_sizes, original_sizes, strict=True)]
