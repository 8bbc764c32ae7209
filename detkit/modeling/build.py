"""Building a detector from a config. Every `build_*` but the first takes its own node, wherever in the config it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from detkit.modeling.anchors import AnchorGrid, level_shapes
from detkit.modeling.box_coder import BoxCoder
from detkit.modeling.criterion import Criterion
from detkit.modeling.postprocess import PostProcess
from detkit.registry import ASSIGNERS, DETECTORS, HEADS, SAMPLERS, open_dataset


def build_detector(cfg: Any, num_classes: int | None = None) -> nn.Module:
    """Return the detector that `cfg` names, with fresh weights.

    Without `num_classes` the first data set of DATASETS.TRAIN says how many there are; it reads no picture.
    """
    if num_classes is None:
        if not cfg.DATASETS.TRAIN:
            raise ValueError("DATASETS.TRAIN is empty, so the number of classes is unknown; name a data set there")
        num_classes = len(open_dataset(cfg.DATASETS.TRAIN[0]).classes())
    if num_classes < 1:
        raise ValueError(f"a detector needs at least one class, not {num_classes}; see the data set's categories")
    return DETECTORS.get(cfg.MODEL.DETECTOR.NAME).from_config(cfg, num_classes)  # type: ignore[attr-defined]


def build_anchors(node: Any, strides: Sequence[float]) -> AnchorGrid:
    """Return RetinaNet's anchors on levels of these strides, from a node like MODEL.ANCHORS."""
    if len(node.SIZES) != len(strides):
        raise ValueError(
            f"ANCHORS.SIZES {tuple(node.SIZES)} has {len(node.SIZES)} levels, the neck {len(strides)} of strides "
            f"{strides}; give one base size for each"
        )
    shapes = [
        level_shapes(
            size,
            stride,
            scales_per_octave=node.SCALES_PER_OCTAVE,
            aspect_ratios=node.ASPECT_RATIOS,
            rounding=node.ROUNDING,
        )
        for size, stride in zip(node.SIZES, strides, strict=True)
    ]
    return AnchorGrid(shapes=shapes, strides=strides, offset=node.OFFSET, steps=node.STEPS)


def build_box_coder(node: Any) -> BoxCoder:
    """Return the box coder of a node like MODEL.BOX_CODER."""
    return BoxCoder(weights=node.WEIGHTS, max_log_ratio=node.MAX_LOG_RATIO)


def build_head(
    node: Any, neck: Any, num_anchors: Sequence[int], cls_loss: Any, num_classes: int, prior_prob: float | None
) -> nn.Module:
    """Return the head of a node like MODEL.HEAD for the features of a neck and the logits of a loss.

    `num_anchors` counts the anchors of a cell on each level. All levels share the head: neither this nor the width of
    the features may differ between them.
    """
    widths = set(neck.out_channels.values())
    if len(widths) != 1:
        raise ValueError(f"a head shared over levels needs features of one width; the neck gives {neck.out_channels}")
    counts = set(num_anchors)
    if len(counts) != 1:
        raise ValueError(
            f"a head shared over levels needs equally many anchors on each; the levels have {tuple(num_anchors)}"
        )
    return HEADS.build(
        node,
        in_channels=widths.pop(),
        num_anchors=counts.pop(),
        num_logits=cls_loss.num_channels(num_classes),
        prior_bias=None if prior_prob is None else cls_loss.prior_bias(prior_prob, num_classes),
    )


def build_criterion(node: Any, num_classes: int, *, cls_loss: Any, box_loss: Any, box_coder: BoxCoder) -> Criterion:
    """Return the criterion of a node that holds ASSIGNER, SAMPLER and CRITERION, like MODEL."""
    return Criterion(
        num_classes=num_classes,
        assigner=ASSIGNERS.build(node.ASSIGNER, num_classes=num_classes),
        sampler=SAMPLERS.build(node.SAMPLER, num_classes=num_classes),
        cls_loss=cls_loss,
        box_loss=box_loss,
        box_coder=box_coder,
        normalizer=node.CRITERION.NORMALIZER,
        box_loss_on=node.CRITERION.BOX_LOSS_ON,
        box_loss_weight=node.CRITERION.BOX_LOSS_WEIGHT,
        normalizer_momentum=node.CRITERION.NORMALIZER_MOMENTUM,
    )


def build_postprocess(node: Any, box_coder: BoxCoder) -> PostProcess:
    """Return the post-processing of a node like MODEL.POSTPROCESS."""
    return PostProcess(
        box_coder=box_coder,
        score_threshold=node.SCORE_THRESHOLD,
        coarsest_score_threshold=node.COARSEST_SCORE_THRESHOLD,
        topk_per_level=node.TOPK_PER_LEVEL,
        nms_iou=node.NMS_IOU,
        max_detections=node.MAX_DETECTIONS,
        clip=node.CLIP,
        corners=node.CORNERS,
    )
