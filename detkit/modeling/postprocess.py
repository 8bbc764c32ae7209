"""From scores and deltas to detections (RetinaNet, section 4, "Inference"), in composable pieces.

Legend: N images, R anchors of a level, K classes, C candidates; a candidate of score -inf is none (static shapes).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from detkit import ops
from detkit.modeling.box_coder import BoxCoder
from detkit.structures import Detections
from detkit.structures.boxes import clip_boxes

Corners = Literal["continuous", "pixels"]


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
    kept_NC = ops.nms_mask(candidates.boxes, candidates.scores, nms_iou, groups=groups_NC, quota=max_detections)
    detections = []
    for boxes, scores, classes, kept in zip(*candidates, kept_NC, strict=True):
        found = kept.nonzero()[:, 0]
        found = found[scores[found].sort(descending=True, stable=True).indices]
        detections.append(Detections(boxes[found], scores[found], classes[found]))
    return detections


def to_original(boxes: Tensor, image_sizes: Tensor, original_sizes: Tensor, corners: Corners = "continuous") -> Tensor:
    """Scale boxes [..., R, 4] from resized pictures, (height, width) [..., 2], to the original ones, and clip them.

    "continuous" scales coordinates and clips them to 0..W. "pixels" scales a box's first and last pixels, x0 and
    x1 - 1, and clips them to 0..W-1, so that at least a pixel is left (Detectron, whose x1 is that last pixel).
    """
    scale = torch.cat([(original_sizes / image_sizes).float().flip(-1)] * 2, -1)[..., None, :]  # x, y, x, y
    if corners == "continuous":
        return clip_boxes(boxes * scale, original_sizes)
    pixels = torch.cat([boxes[..., :2], boxes[..., 2:] - 1], -1)
    pixels = clip_boxes(pixels * scale, original_sizes - 1)
    return torch.cat([pixels[..., :2], pixels[..., 2:] + 1], -1)


def without_empty(detections: Detections) -> Detections:
    """Drop the boxes without area and those that are not numbers."""
    is_box = (detections.boxes[:, 2:] > detections.boxes[:, :2]).all(-1)  # false for NaN, too
    keep = is_box.nonzero()[:, 0]  # one wait for the device, where each mask would be one
    return Detections(detections.boxes[keep], detections.scores[keep], detections.classes[keep])


class PostProcess:
    """Threshold and top-k per level, decode, non-maximum suppression per class, best of all, original pixels.

    Args:
        box_coder: what deltas mean.
        score_threshold: in [0, 1); scores must be above it.
        topk_per_level: (anchor, class) pairs of a level that are decoded, at most.
        nms_iou: in [0, 1]; a box is suppressed by a better one of its class above this IoU.
        max_detections: boxes that suppression leaves, at most; those of them without area are dropped after that.
        coarsest_score_threshold: the threshold on the last level; None: `score_threshold` (Detectron: 0).
        clip: boxes are scaled to the original picture and clipped "after_nms" (detectron2) or "before_nms"
            (Detectron). torchvision clips in the resized picture before suppression, and scales at the end: the same,
            as scaling an axis changes no IoU.
        corners: what is scaled, see `to_original`.
    """

    def __init__(
        self,
        *,
        box_coder: BoxCoder,
        score_threshold: float = 0.05,
        topk_per_level: int = 1000,
        nms_iou: float = 0.5,
        max_detections: int = 100,
        coarsest_score_threshold: float | None = None,
        clip: Literal["after_nms", "before_nms"] = "after_nms",
        corners: Corners = "continuous",
    ) -> None:
        if topk_per_level < 1 or max_detections < 1:
            raise ValueError(
                f"post-processing: topk_per_level {topk_per_level} and max_detections {max_detections} must be positive"
            )
        if coarsest_score_threshold is None:
            coarsest_score_threshold = score_threshold
        _check_threshold("score_threshold", score_threshold)
        _check_threshold("coarsest_score_threshold", coarsest_score_threshold)
        if not 0 <= nms_iou <= 1:
            raise ValueError(f"post-processing: nms_iou {nms_iou} is not in [0, 1]; 1 suppresses nothing")
        self.box_coder = box_coder
        self.score_threshold = score_threshold
        self.topk_per_level = topk_per_level
        self.nms_iou = nms_iou
        self.max_detections = max_detections
        self.coarsest_score_threshold = coarsest_score_threshold
        self.clip = clip
        self.corners = corners

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
        thresholds = [self.score_threshold] * (len(scores) - 1) + [self.coarsest_score_threshold]
        levels = [
            top_candidates(*level, self.box_coder, score_threshold=threshold, topk=self.topk_per_level)
            for level, threshold in zip(zip(scores, deltas, anchors, strict=True), thresholds, strict=True)
        ]
        candidates = join(levels)
        if self.clip == "before_nms":
            boxes = to_original(candidates.boxes, image_sizes, original_sizes, self.corners)
            candidates = candidates._replace(boxes=boxes)
        found = suppress(candidates, candidates.classes, nms_iou=self.nms_iou, max_detections=self.max_detections)
        if self.clip == "after_nms":
            found = [
                replace(image, boxes=to_original(image.boxes, size, original, self.corners))
                for image, size, original in zip(found, image_sizes, original_sizes, strict=True)
            ]
        return [without_empty(image) for image in found]


def _check_threshold(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(
            f"post-processing: {name} {value} is not in [0, 1); scores must be above it, 0 keeps every positive one"
        )
