"""Losses on one sigmoid per class over integer labels; no one-hot tensor exists.

Value and gradient are computed and summed in float32 (float64 for float64) and are finite for |logit| <= 1e4. They are
differentiable in the logits, once and by torch.autograd in reverse mode only (not by torch.func). The result of a
compiled kernel does not depend on the number of threads; what lies below the normal numbers of a type is 0 there.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from detkit.ops import _schema, reference

Reduction = Literal["sum", "anchor", "none"]
_REDUCTIONS = {"sum": reference.SUM, "anchor": reference.ANCHOR, "none": reference.NONE}
LARGEST = 1e6  # of an exponent, a slope or a shift: far beyond use, and within float32 with any logit
_LABELS = (torch.int64, torch.int32, torch.uint8)


def sigmoid_focal_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    reduction: Reduction = "sum",
) -> Tensor:
    """Focal loss -w (1 - p_t)^gamma log p_t with p = sigmoid(logit) (Lin et al. 2017, eq. 5), not normalised.

    Args:
        logits: [..., K] float32, float64, bfloat16 or float16, finite; K classes.
        labels: [...] int64, int32 or uint8: 0..K-1 class, K background, -1 ignored (uint8 ignores nothing).
        alpha: weight w of the labelled class, 1 - alpha of the others, in [0, 1]; None: all 1.
        gamma: focusing exponent, in [0, 1e6]; 0 is (balanced) cross entropy.
        reduction: "sum" a scalar, "anchor" the sum over classes [...], "none" [..., K].

    Returns:
        The loss; "sum" and "anchor" have the type that is computed in, "none" the type of the logits. Nothing to sum
        gives 0 with a graph. Ignored rows give 0 and a gradient of 0.

    Raises:
        ValueError: naming the argument and its shape, type or range. RuntimeError: a label out of range, on the CPU
            only; on other devices, where looking would cost a synchronisation, such a label counts as background.
    """
    _check_tensors(logits, labels)
    _check_options(alpha, reduction)
    _check_number("gamma", gamma, 0 <= gamma <= LARGEST, f"in [0, {LARGEST:g}]")
    return _loss("sigmoid_focal_loss", reduction, logits, labels, alpha, float(gamma))


def sigmoid_focal_loss_star(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    beta: float = 1.0,
    reduction: Reduction = "sum",
) -> Tensor:
    """FL* of the paper's appendix A: -w log(p_t*) / gamma with p_t* = sigmoid(gamma x_t + beta), not normalised.

    x_t is the logit of the labelled class and minus the logit of the others.

    Args:
        logits, labels, alpha, reduction: as of sigmoid_focal_loss.
        gamma: slope of the shifted logit, in [1e-6, 1e6].
        beta: its shift, in [-1e6, 1e6].

    Returns and raises as sigmoid_focal_loss.
    """
    _check_tensors(logits, labels)
    _check_options(alpha, reduction)
    _check_number("gamma", gamma, 1 / LARGEST <= gamma <= LARGEST, f"in [{1 / LARGEST:g}, {LARGEST:g}]")
    _check_number("beta", beta, abs(beta) <= LARGEST, f"in [-{LARGEST:g}, {LARGEST:g}]")
    return _loss("sigmoid_focal_loss_star", reduction, logits, labels, alpha, float(gamma), float(beta))


def sigmoid_hinge_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float | None = None,
    margin: float = 0.5,
    reduction: Reduction = "sum",
) -> Tensor:
    """Hinge loss w max(0, margin - p_t) on the probability (section 5.1 of the paper, "Hinge Loss"), not normalised.

    Args:
        logits, labels, alpha, reduction: as of sigmoid_focal_loss.
        margin: the p_t from which on there is no loss, in (0, 1].

    Returns and raises as sigmoid_focal_loss. The derivative at p_t = margin is 0.
    """
    _check_tensors(logits, labels)
    _check_options(alpha, reduction)
    _check_number("margin", margin, 0 < margin <= 1, "in (0, 1]")
    return _loss("sigmoid_hinge_loss", reduction, logits, labels, alpha, float(margin))


def _loss(name: str, reduction: str, logits: Tensor, labels: Tensor, *options: float | None) -> Tensor:
    if not torch.compiler.is_compiling():
        _refuse_forward_mode(name, logits)
        if reduction == "sum" and _fuses(logits):
            return _schema.SumWithGradient.apply(name, logits, labels, *options)
    return getattr(_schema.OPS, name)(logits, labels, *options, _REDUCTIONS[reduction])


def _fuses(logits: Tensor) -> bool:
    """Return whether the sum is to be computed together with its gradient.

    Not for float16: there the gradient of an easy element underflows before the loss scale is applied to it.
    """
    wanted = logits.requires_grad and torch.is_grad_enabled()
    return wanted and logits.device.type == "cpu" and logits.dtype != torch.float16


def _refuse_forward_mode(name: str, logits: Tensor) -> None:
    """Raise where a tangent would be lost: PyTorch passes over it silently."""
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(logits).tangent is not None:
        raise RuntimeError(
            f"{name} has no derivative in forward mode (jvp, jacfwd, dual numbers); use torch.autograd's reverse mode"
        )


def _check_tensors(logits: Tensor, labels: Tensor) -> None:
    _schema.check_dense(logits=logits, labels=labels)
    if logits.dtype not in _schema.FLOATS:
        raise ValueError(f"logits must be float32, float64, bfloat16 or float16, not {logits.dtype}")
    if labels.dtype not in _LABELS:
        raise ValueError(f"labels must be class indices as int64, int32 or uint8 (no one-hot), not {labels.dtype}")
    if logits.dim() == 0 or labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels {tuple(labels.shape)} must have the shape of logits {tuple(logits.shape)} without its last "
            "dimension, the classes"
        )
    if labels.device != logits.device:
        raise ValueError(f"labels are on {labels.device}, logits on {logits.device}; move one of them")


def _check_options(alpha: float | None, reduction: str) -> None:
    if alpha is not None:
        _check_number("alpha", alpha, 0 <= alpha <= 1, "None (no weights) or in [0, 1]")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {sorted(_REDUCTIONS)}, not {reduction!r}")


def _check_number(name: str, value: float, is_right: bool, expected: str) -> None:
    if not is_right:
        raise ValueError(f"{name} must be {expected}, not {value}")
