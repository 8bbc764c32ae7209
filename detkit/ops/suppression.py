"""Greedy non-maximum suppression (Felzenszwalb et al. 2010, section 4), with one arithmetic on every device.

Boxes are taken by falling score, equal scores by index; NaN and infinite scores come last, by index. A box is
suppressed by a kept one before it when `inter > iou_threshold * union`, evaluated in float64 from the coordinates as
given (`torchvision` compares a float32 quotient, which may differ where the overlap is at the threshold). Sides are
`max(0, x1 - x0)`; a box with a coordinate that is NaN or infinite, or without area, neither suppresses nor is
suppressed. The result is the exact greedy one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.ops import _schema


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, *, max_keep: int | None = None) -> Tensor:
    """Suppress boxes that overlap a better one.

    By falling score, equal ones by index; NaN and infinite scores (both signs) come last. A box is suppressed where
    inter > iou_threshold * union; one with a coordinate that is not finite, or without area, never is.

    Args:
        boxes: [R, 4] xyxy, any float type.
        scores: [R], any float type.
        iou_threshold: in [0, 1]; 1 suppresses nothing.
        max_keep: stop after so many; None: keep all that survive.

    Returns:
        [k] int64 indices of the kept boxes, by falling score; empty for R = 0 or max_keep = 0.

    Raises:
        ValueError: naming the argument and its shape, type or range.
    """
    _check(boxes, scores, iou_threshold, dims=1)
    _check_max_keep(max_keep)
    return _schema.OPS.nms(boxes.detach(), scores.detach(), float(iou_threshold), max_keep)


def batched_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, *, max_keep: int | None = None
) -> Tensor:
    """Suppress boxes that overlap a better one of the same group (class, level, image); else as nms.

    Args:
        boxes: [R, 4] xyxy, any float type.
        scores: [R], any float type.
        groups: [R] int64 or int32, any values.
        iou_threshold: in [0, 1]; 1 suppresses nothing.
        max_keep: stop after so many over all groups; None: keep all that survive.

    Returns:
        [k] int64 indices of the kept boxes of all groups, by falling score; empty for R = 0 or max_keep = 0.

    Raises:
        ValueError: naming the argument and its shape, type or range.
    """
    _check(boxes, scores, iou_threshold, dims=1)
    _check_max_keep(max_keep)
    _check_integers("groups", groups, scores, (torch.int64, torch.int32))
    return _schema.OPS.batched_nms(boxes.detach(), scores.detach(), groups, float(iou_threshold), max_keep)


def nms_mask(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    groups: Tensor | None = None,
    kinds: Tensor | None = None,
    quota: Sequence[int] | int | None = None,
) -> Tensor:
    """Suppress boxes image by image, in static shape and without synchronisation.

    With a quota, the result is the greedy one cut to the first `quota[k]` boxes of each kind k: suppression knows
    groups, but no kinds; boxes beyond their quota still suppress, and the pass ends as soon as every kind is full.

    Args:
        boxes: [N, R, 4] xyxy, any float type.
        scores: [N, R], any float type; -inf: no candidate.
        iou_threshold: in [0, 1]; 1 suppresses nothing.
        groups: [N, R] int64 or int32, any values: a box is suppressed by one of its group only; None: all are in one.
        kinds: [N, R] int64, int32 or uint8, indices into `quota`; another value has a quota of 0.
        quota: boxes wanted per image and kind; one number (without `kinds`) per image; None: all that survive.

    Returns:
        [N, R] bool, true where a box is kept; R and N may be 0.

    Raises:
        ValueError: naming the argument and its shape, type or range.
    """
    _check(boxes, scores, iou_threshold, dims=2)
    if (kinds is None) == isinstance(quota, Sequence):
        raise ValueError(
            "kinds and a sequence of quotas (ints, one for each kind) belong together: give both, or neither and one "
            f"number or None; kinds is {'None' if kinds is None else 'given'}, quota is {quota!r}"
        )
    if kinds is not None:
        _check_integers("kinds", kinds, scores, (torch.int64, torch.int32, torch.uint8))
    if groups is not None:
        _check_integers("groups", groups, scores, (torch.int64, torch.int32))
    if not isinstance(quota, Sequence | int | None):
        raise ValueError(f"quota must be None, an int, or a sequence of ints (one for each kind), not {quota!r}")
    quotas = [quota] if isinstance(quota, int) else quota if quota is None else list(quota)
    if quotas is not None and any(most < 0 for most in quotas):
        raise ValueError(f"a quota must be at least 0, not {quota}")
    return _schema.OPS.nms_mask(boxes.detach(), scores.detach(), float(iou_threshold), groups, kinds, quotas)


def _check(boxes: Tensor, scores: Tensor, iou_threshold: float, dims: int) -> None:
    _schema.check_dense(boxes=boxes, scores=scores)
    if boxes.dtype not in _schema.FLOATS or scores.dtype not in _schema.FLOATS:
        raise ValueError(f"boxes and scores must be floats of 16, 32 or 64 bits, not {boxes.dtype} and {scores.dtype}")
    if scores.dim() != dims or boxes.shape != (*scores.shape, 4):
        expected = "[R, 4] and [R]" if dims == 1 else "[N, R, 4] and [N, R]"
        raise ValueError(
            f"boxes and scores must have shapes {expected}, not {tuple(boxes.shape)} and {tuple(scores.shape)}"
        )
    if boxes.device != scores.device:
        raise ValueError(f"boxes are on {boxes.device}, scores on {scores.device}; move one of them")
    if isinstance(iou_threshold, Tensor) or not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be in [0, 1], not {iou_threshold}")


def _check_max_keep(max_keep: int | None) -> None:
    if max_keep is not None and (not isinstance(max_keep, int | torch.SymInt) or max_keep < 0):
        raise ValueError(f"max_keep must be None or an int, at least 0, not {max_keep!r}")


def _check_integers(name: str, values: Tensor, scores: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if values.dtype not in dtypes:
        raise ValueError(f"{name} must be {' or '.join(map(str, dtypes))}, not {values.dtype}")
    if values.shape != scores.shape or values.device != scores.device:
        raise ValueError(
            f"{name} {tuple(values.shape)} on {values.device} must have the shape and device of scores "
            f"{tuple(scores.shape)} on {scores.device}"
        )
