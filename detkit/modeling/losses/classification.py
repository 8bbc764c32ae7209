"""Classification losses over anchors (socket CLS_LOSSES): those of the paper, each on one sigmoid per class.

All are sums over classes of a weight times a function of x_t, the logit of the anchor's own class or minus the logit of
another; `ops.losses` computes them. They share their logits, prior and scores, and differ in that function.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal

from torch import Tensor

from detkit import ops
from detkit.ops.losses import LARGEST
from detkit.registry import CLS_LOSSES

Reduction = Literal["sum", "anchor", "none"]


class SigmoidLoss:
    """What losses on one sigmoid per class have in common; a loss brings the operation that computes it."""

    def __init__(self, operation: Callable[..., Tensor]) -> None:
        self._operation = operation

    def __call__(self, logits_NRK: Tensor, labels_NR: Tensor, reduction: Reduction) -> Tensor:
        """Return the loss of all anchors ("sum"), of each, [N, R] ("anchor"), or its terms, [N, R, K] ("none").

        Label -1 adds nothing. Terms have the type of the logits.
        """
        return self._operation(logits_NRK, labels_NR, reduction=reduction)

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

    def _check(self, name: str, value: float | None, is_right: bool, expected: str) -> None:
        if not is_right:
            raise ValueError(f"{type(self).__name__}: {name} {value} is not {expected}")

    def _check_alpha(self, alpha: float | None) -> None:
        self._check("alpha", alpha, alpha is None or 0 <= alpha <= 1, "in [0, 1] or None")


@CLS_LOSSES.register()
class SigmoidFocalLoss(SigmoidLoss):
    """The focal loss on one sigmoid per class (RetinaNet, eq. 5): -alpha_t (1 - p_t)^gamma log(p_t).

    Args:
        alpha: weight of the anchor's own class, 1 - alpha of the others; None is no weighting (section 5.1).
        gamma: focusing exponent, at least 0; 0 is cross entropy.
    """

    def __init__(self, *, alpha: float | None = 0.25, gamma: float = 2.0) -> None:
        self._check_alpha(alpha)
        self._check("gamma", gamma, 0 <= gamma <= LARGEST, f"in [0, {LARGEST:g}]")
        super().__init__(functools.partial(ops.sigmoid_focal_loss, alpha=alpha, gamma=gamma))
        self.alpha = alpha
        self.gamma = gamma


@CLS_LOSSES.register()
class BalancedCrossEntropy(SigmoidLoss):
    """Cross entropy weighted by class (RetinaNet, eq. 3): -alpha_t log(p_t), the baseline of Table 1a.

    Args:
        alpha: weight of the anchor's own class, 1 - alpha of the others; None is plain cross entropy.
    """

    def __init__(self, *, alpha: float | None = 0.75) -> None:
        self._check_alpha(alpha)
        super().__init__(functools.partial(ops.sigmoid_focal_loss, alpha=alpha, gamma=0.0))
        self.alpha = alpha


@CLS_LOSSES.register()
class FocalLossStar(SigmoidLoss):
    """The variant FL* of the focal loss (RetinaNet, appendix A): -alpha_t log(sigmoid(gamma x_t + beta)) / gamma.

    Scores at inference are the plain sigmoids of the logits, as everywhere.

    Args:
        alpha: weight of the anchor's own class, 1 - alpha of the others; None is no weighting.
        gamma: slope of the shifted logit, above 0.
        beta: its shift.
    """

    def __init__(self, *, alpha: float | None = 0.25, gamma: float = 2.0, beta: float = 1.0) -> None:
        self._check_alpha(alpha)
        self._check("gamma", gamma, 1 / LARGEST <= gamma <= LARGEST, f"in [{1 / LARGEST:g}, {LARGEST:g}]")
        self._check("beta", beta, abs(beta) <= LARGEST, f"in [-{LARGEST:g}, {LARGEST:g}]")
        super().__init__(functools.partial(ops.sigmoid_focal_loss_star, alpha=alpha, gamma=gamma, beta=beta))
        self.alpha = alpha
        self.gamma = gamma
        self.beta = beta


@CLS_LOSSES.register()
class HingeLoss(SigmoidLoss):
    """The hinge loss on the probability p_t (RetinaNet, section 5.1, which found it unstable): max(0, margin - p_t).

    Args:
        alpha: weight of the anchor's own class, 1 - alpha of the others; None is no weighting.
        margin: the p_t from which on there is no loss, in (0, 1].
    """

    def __init__(self, *, alpha: float | None = None, margin: float = 0.5) -> None:
        self._check_alpha(alpha)
        self._check("margin", margin, 0 < margin <= 1, "in (0, 1]")
        super().__init__(functools.partial(ops.sigmoid_hinge_loss, alpha=alpha, margin=margin))
        self.alpha = alpha
        self.margin = margin
