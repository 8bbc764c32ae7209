"""Boxes as deltas to anchors (Girshick et al. 2014, appendix C).

A delta is the shift of the centre in units of the anchor's sides, and the logarithm of the ratio of sides.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MAX_LOG_RATIO = math.log(1000 / 16)


class BoxCoder:
    """Encodes boxes as weighted (dx, dy, dw, dh) and decodes them, in float32 (float64 where given), broadcasting.

    `max_log_ratio` caps dw and dh of a prediction, so that exp cannot overflow; they are not bounded from below.
    """

    def __init__(
        self, *, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0), max_log_ratio: float = MAX_LOG_RATIO
    ) -> None:
        if len(weights) != 4 or min(weights) <= 0:
            raise ValueError(f"box coder: weights {tuple(weights)} must be four positive numbers (dx, dy, dw, dh)")
        self.weights = tuple(float(w) for w in weights)
        self.max_log_ratio = float(max_log_ratio)

    def encode(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """Return the deltas [..., 4] that take anchors [..., 4] to boxes [..., 4]; both need positive sides."""
        anchor_centre, anchor_size = _centre_and_size(_precise(anchors))
        box_centre, box_size = _centre_and_size(_precise(boxes))
        shift = (box_centre - anchor_centre) / anchor_size
        ratio = torch.log(box_size / anchor_size)
        return self._weigh(operator.mul, torch.cat([shift, ratio], -1))

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Return the boxes [..., 4] that deltas [..., 4] make of anchors [..., 4], neither clipped nor rounded."""
        deltas = self._weigh(operator.truediv, _precise(deltas))
        anchor_centre, anchor_size = _centre_and_size(_precise(anchors))
        centre = deltas[..., :2] * anchor_size + anchor_centre
        half = 0.5 * torch.exp(deltas[..., 2:].clamp(max=self.max_log_ratio)) * anchor_size
        return torch.cat([centre - half, centre + half], -1)

    def _weigh(self, operation: Callable[[Tensor, float], Tensor], deltas: Tensor) -> Tensor:
        """Multiply or divide (dx, dy, dw, dh) by the weights as numbers; a tensor made of them waits for the GPU."""
        if self.weights == (1.0, 1.0, 1.0, 1.0):
            return deltas
        components = zip(deltas.unbind(-1), self.weights, strict=True)
        return torch.stack([operation(component, weight) for component, weight in components], -1)


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


def _precise(values: Tensor) -> Tensor:
    """Half precision cannot tell pixels beyond 256 apart (bfloat16), so at least float32."""
    return values if values.dtype == torch.float64 else values.float()
