"""The sigmoid focal loss over integer labels."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from detkit.ops import _schema, reference

Reduction = Literal["sum", "anchor", "none"]
_REDUCTIONS = {"sum": reference.SUM, "anchor": reference.ANCHOR, "none": reference.NONE}
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
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
        gamma: focusing exponent, >= 0; 0 is (balanced) cross entropy.
        reduction: "sum" a scalar, "anchor" the sum over classes [...], "none" [..., K].

    Returns:
        The loss, computed and summed in float32 (float64 for float64); "sum" and "anchor" have that type, "none" the
        type of the logits. Nothing to sum gives 0 with a graph. Ignored rows give 0 and a gradient of 0.

    Raises:
        ValueError: naming the argument and its shape, type or range. RuntimeError: a label out of range, on the CPU
            only; on other devices, where looking would cost a synchronisation, such a label counts as background.

    Value and gradient are finite for |logit| <= 1e4 and every gamma. Differentiable in the logits, once. The result of
    the compiled kernel does not depend on the number of threads.
    """
    _check_tensors(logits, labels)
    _check_options(alpha, gamma, reduction)
    return _schema.OPS.sigmoid_focal_loss(
        logits, labels, None if alpha is None else float(alpha), float(gamma), _REDUCTIONS[reduction]
    )


def _check_tensors(logits: Tensor, labels: Tensor) -> None:
    if logits.dtype not in _FLOATS:
        raise ValueError(f"logits must be float32, float64, bfloat16 or float16, not {logits.dtype}")
    if labels.dtype not in _LABELS:
        raise ValueError(f"labels must be int64, int32 or uint8, not {labels.dtype}")
    if logits.dim() == 0 or labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels {tuple(labels.shape)} must have the shape of logits {tuple(logits.shape)} without its last "
            "dimension, the classes"
        )
    if labels.device != logits.device:
        raise ValueError(f"labels are on {labels.device}, logits on {logits.device}; move one of them")


def _check_options(alpha: float | None, gamma: float, reduction: str) -> None:
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be None or in [0, 1], not {alpha}")
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma must be finite and at least 0, not {gamma}")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {sorted(_REDUCTIONS)}, not {reduction!r}")
