"""The operations as PyTorch sees them: schema, shapes for tracing, gradients, and the reference as the kernel of last
resort. A compiled library only adds kernels per device; nothing here changes when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from detkit.ops import reference
from detkit.ops._library import kernel_of_last_resort

LIBRARY = torch.library.Library("detkit", "DEF")
OPS = torch.ops.detkit


def _define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, kernel_of_last_resort(name, run), "CompositeExplicitAutograd")
    torch.library.register_fake(f"detkit::{name}", fake, lib=LIBRARY)


# ---------------------------------------------------------------------------------------------------------------------
# sigmoid_focal_loss
# ---------------------------------------------------------------------------------------------------------------------


def _focal_fake(logits: Tensor, labels: Tensor, alpha: float | None, gamma: float, reduction: int) -> Tensor:
    if reduction == reference.NONE:
        return logits.new_empty(logits.shape)
    shape = logits.shape[:-1] if reduction == reference.ANCHOR else ()
    return logits.new_empty(shape, dtype=reference.accumulation_dtype(logits.dtype))


def _focal_backward_fake(
    grad: Tensor, logits: Tensor, labels: Tensor, alpha: float | None, gamma: float, reduction: int
) -> Tensor:
    return logits.new_empty(logits.shape)


def _focal_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    logits, labels, ctx.alpha, ctx.gamma, ctx.reduction = inputs
    ctx.save_for_backward(logits, labels)


def _focal_gradient(ctx: Any, grad: Tensor) -> tuple:
    logits, labels = ctx.saved_tensors
    backward = torch.ops.detkit._sigmoid_focal_loss_backward
    return backward(grad, logits, labels, ctx.alpha, ctx.gamma, ctx.reduction), None, None, None, None


def _no_second_derivative(ctx: Any, *grads: Tensor) -> tuple:
    raise RuntimeError(
        "sigmoid_focal_loss can be differentiated once only: a second derivative (create_graph=True, a gradient "
        "penalty) is not supported; write the loss in PyTorch operations for that"
    )


_define(
    "sigmoid_focal_loss(Tensor logits, Tensor labels, float? alpha, float gamma, int reduction) -> Tensor",
    reference.sigmoid_focal_loss,
    _focal_fake,
)
_define(
    "_sigmoid_focal_loss_backward(Tensor grad, Tensor logits, Tensor labels, float? alpha, float gamma, int reduction)"
    " -> Tensor",
    reference.sigmoid_focal_loss_backward,
    _focal_backward_fake,
)
torch.library.register_autograd("detkit::sigmoid_focal_loss", _focal_gradient, setup_context=_focal_setup, lib=LIBRARY)
torch.library.register_autograd("detkit::_sigmoid_focal_loss_backward", _no_second_derivative, lib=LIBRARY)


# ---------------------------------------------------------------------------------------------------------------------
# nms, batched_nms, nms_mask
# ---------------------------------------------------------------------------------------------------------------------


def _kept_fake(boxes: Tensor) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def _nms_mask_fake(
    boxes: Tensor, scores: Tensor, iou_threshold: float, kinds: Tensor | None, quota: Sequence[int] | None
) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.bool)


_define(
    "nms(Tensor boxes, Tensor scores, float iou_threshold, int? max_keep) -> Tensor",
    reference.nms,
    lambda boxes, scores, iou_threshold, max_keep: _kept_fake(boxes),
)
_define(
    "batched_nms(Tensor boxes, Tensor scores, Tensor groups, float iou_threshold, int? max_keep) -> Tensor",
    reference.batched_nms,
    lambda boxes, scores, groups, iou_threshold, max_keep: _kept_fake(boxes),
)
_define(
    "nms_mask(Tensor boxes, Tensor scores, float iou_threshold, Tensor? kinds, int[]? quota) -> Tensor",
    reference.nms_mask,
    _nms_mask_fake,
)


# ---------------------------------------------------------------------------------------------------------------------
# match_anchors
# ---------------------------------------------------------------------------------------------------------------------


def _match_fake(anchors: Tensor, gt_boxes: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    shape = (gt_boxes.shape[0], anchors.shape[-2])
    return anchors.new_empty(shape, dtype=torch.int64), anchors.new_empty(shape, dtype=torch.int64)


_define(
    "match_anchors(Tensor anchors, Tensor gt_boxes, Tensor gt_classes, Tensor? valid, int num_classes, "
    "float positive_iou, float negative_iou, int low_quality) -> (Tensor, Tensor)",
    reference.match_anchors,
    _match_fake,
)
