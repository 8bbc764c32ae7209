"""The operations as PyTorch sees them: schema, shapes for tracing, gradients, and the reference as the kernel of last
resort. A compiled library only adds kernels per device; nothing here changes when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from detkit.ops import reference
from detkit.ops._library import kernel_of_last_resort

LIBRARY = torch.library.Library("detkit", "DEF")
OPS = torch.ops.detkit
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # what boxes, scores and logits may be


def check_dense(**tensors: object) -> None:
    """Refuse what is no tensor (TypeError), or one that is sparse or of another library's layout (ValueError)."""
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, not {type(value).__module__}.{type(value).__name__}")
        if value.layout != torch.strided:
            raise ValueError(f"{name} must be dense (torch.strided), not {value.layout}")


def _define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, kernel_of_last_resort(name, run), "CompositeExplicitAutograd")
    torch.library.register_fake(f"detkit::{name}", fake, lib=LIBRARY)


# ---------------------------------------------------------------------------------------------------------------------
# Losses on sigmoids
# ---------------------------------------------------------------------------------------------------------------------


def _loss_fake(logits: Tensor, labels: Tensor, alpha: float | None, *options: Any) -> Tensor:
    reduction = options[-1]
    if reduction == reference.NONE:
        return logits.new_empty(logits.shape)
    shape = logits.shape[:-1] if reduction == reference.ANCHOR else ()
    return logits.new_empty(shape, dtype=reference.accumulation_dtype(logits.dtype))


def _loss_backward_fake(grad: Tensor, logits: Tensor, *options: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _loss_with_gradient_fake(logits: Tensor, labels: Tensor, alpha: float | None, *shape: float) -> tuple:
    return _loss_fake(logits, labels, alpha, *shape, reference.SUM), logits.new_empty(logits.shape)


def _define_loss(name: str, shape: str, run: Callable[..., Any], run_backward: Callable[..., Any]) -> None:
    """Define a loss whose shape has some parameters, its backward pass, and the end of differentiation after that."""
    inputs = f"Tensor logits, Tensor labels, float? alpha, {shape}"

    def run_with_gradient(logits: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
        loss = run(logits, *options, reference.SUM)
        return loss, run_backward(torch.ones_like(loss), logits, *options, reference.SUM)

    _define(f"{name}({inputs}, int reduction) -> Tensor", run, _loss_fake)
    _define(f"_{name}_with_gradient({inputs}) -> (Tensor, Tensor)", run_with_gradient, _loss_with_gradient_fake)
    _define(f"_{name}_backward(Tensor grad, {inputs}, int reduction) -> Tensor", run_backward, _loss_backward_fake)
    backward = getattr(OPS, f"_{name}_backward")

    def save(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.options = inputs[2:]

    def gradient(ctx: Any, grad: Tensor) -> tuple:
        return backward(grad, *ctx.saved_tensors, *ctx.options), None, *(None for _ in ctx.options)

    def no_second_derivative(ctx: Any, *grads: Tensor) -> tuple:
        raise RuntimeError(
            f"{name} can be differentiated once only: a second derivative (create_graph=True, a gradient penalty) is "
            "not supported; write the loss in PyTorch operations for that"
        )

    torch.library.register_autograd(f"detkit::{name}", gradient, setup_context=save, lib=LIBRARY)
    torch.library.register_autograd(f"detkit::_{name}_backward", no_second_derivative, lib=LIBRARY)


class SumWithGradient(torch.autograd.Function):
    """The sum of a loss, computed together with its gradient: one pass over the logits instead of two.

    The backward pass multiplies the gradient in place, so that there is one tensor of the size of the logits. Asked
    again (retain_graph=True), for a graph of its own, for a batch of gradients or for one that is not finite, it
    computes anew. On the CPU, where to look at a number waits for nothing.
    """

    @staticmethod
    def forward(ctx: Any, name: str, logits: Tensor, labels: Tensor, *options: float | None) -> Tensor:
        """Return the sum; `options` are those of the schema without the reduction."""
        loss, ctx.gradient = getattr(OPS, f"_{name}_with_gradient")(logits, labels, *options)
        ctx.save_for_backward(logits, labels)
        ctx.backward_op = getattr(OPS, f"_{name}_backward")
        ctx.options = options
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        """Return the gradient to the logits."""
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None or torch.is_grad_enabled() or not _is_a_finite_number(grad):
            logits, labels = ctx.saved_tensors
            gradient = ctx.backward_op(grad, logits, labels, *ctx.options, reference.SUM)
        else:
            gradient.mul_(grad)
        return None, gradient, None, *(None for _ in ctx.options)


_define_loss(
    "sigmoid_focal_loss",
    "float gamma",
    reference.sigmoid_focal_loss,
    reference.sigmoid_focal_loss_backward,
)
_define_loss(
    "sigmoid_focal_loss_star",
    "float gamma, float beta",
    reference.sigmoid_focal_loss_star,
    reference.sigmoid_focal_loss_star_backward,
)
_define_loss(
    "sigmoid_hinge_loss",
    "float margin",
    reference.sigmoid_hinge_loss,
    reference.sigmoid_hinge_loss_backward,
)


def _is_a_finite_number(grad: Tensor) -> bool:
    try:
        return bool(grad.isfinite())
    except RuntimeError:  # a batch of gradients, or a traced one, has no one value
        return False


# ---------------------------------------------------------------------------------------------------------------------
# nms, batched_nms, nms_mask
# ---------------------------------------------------------------------------------------------------------------------


def _kept_fake(boxes: Tensor) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def _nms_mask_fake(boxes: Tensor, scores: Tensor, *options: Any) -> Tensor:
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
    "nms_mask(Tensor boxes, Tensor scores, float iou_threshold, Tensor? groups, Tensor? kinds, int[]? quota) -> Tensor",
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
