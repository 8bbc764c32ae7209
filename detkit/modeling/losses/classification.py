"""Classification losses over anchors (socket CLS_LOSSES)."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from detkit import ops
from detkit.registry import CLS_LOSSES


@CLS_LOSSES.register()
class SigmoidFocalLoss:
    """The focal loss on one sigmoid per class (RetinaNet, eq. 5): -alpha_t (1 - p_t)^gamma log(p_t).

    Args:
        alpha: weight of the anchor's own class, 1 - alpha of the others; None is no weighting (section 5.1).
        gamma: focusing exponent, at least 0; 0 is cross entropy.
    """

    def __init__(self, *, alpha: float | None = 0.25, gamma: float = 2.0) -> None:
        if alpha is not None and not 0 <= alpha <= 1:
            raise ValueError(f"SigmoidFocalLoss: alpha {alpha} is neither in [0, 1] nor None")
        if gamma < 0:
            raise ValueError(f"SigmoidFocalLoss: gamma {gamma} is below 0")
        self.alpha = alpha
        self.gamma = gamma

    def __call__(self, logits_NRK: Tensor, labels_NR: Tensor, reduction: Literal["sum", "anchor"]) -> Tensor:
        """Return the loss of all anchors ("sum") or of each, [N, R] ("anchor"); label -1 adds nothing."""
        return ops.sigmoid_focal_loss(logits_NRK, labels_NR, alpha=self.alpha, gamma=self.gamma, reduction=reduction)

    def num_channels(self, num_classes: int) -> int:
        """Return the logits of an anchor: one per class, none for background."""
        return num_classes

    def prior_bias(self, prior: float, num_classes: int) -> list[float]:
        """Return the logit of probability `prior`, in (0, 1), for each class (section 3.3)."""
        if not 0 < prior < 1:
            raise ValueError(f"the prior probability {prior} is not between 0 and 1; None starts the bias at 0")
        return [-math.log((1 - prior) / prior)] * num_classes

    def scores(self, logits_NRK: Tensor) -> Tensor:
        """Return the probability of each class, float32, independent of one another."""
        return logits_NRK.float().sigmoid()
