"""Poly-1 focal loss (Leng et al., "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions",
ICLR 2022): the focal loss with the first coefficient of its expansion in (1 - p_t) changed by epsilon.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from detkit.modeling.losses import SigmoidFocalLoss
from detkit.registry import CLS_LOSSES


@CLS_LOSSES.register()
class PolyFocalLoss(SigmoidFocalLoss):
    """The focal loss plus epsilon alpha_t (1 - p_t)^(gamma + 1), per class of a sigmoid.

    Args:
        alpha: weight of the anchor's own class, 1 - alpha of the others; None is no weighting.
        gamma: focusing exponent, at least 0.
        epsilon: what is added to the first coefficient, at least -1; 0 is the focal loss.
    """

    def __init__(self, *, alpha: float | None = 0.25, gamma: float = 2.0, epsilon: float = -1.0) -> None:
        super().__init__(alpha=alpha, gamma=gamma)
        if epsilon < -1:
            raise ValueError(f"PolyFocalLoss: epsilon {epsilon} is below -1, where the loss falls as p_t does")
        self.epsilon = epsilon

    def __call__(self, logits_NRK: Tensor, labels_NR: Tensor, reduction: Literal["sum", "anchor", "none"]) -> Tensor:
        """Return the loss of all anchors ("sum"), of each, [N, R] ("anchor"), or its terms, [N, R, K] ("none").

        Label -1 adds nothing.
        """
        return super().__call__(logits_NRK, labels_NR, reduction) + self.epsilon * self._first_term(
            logits_NRK.float(), labels_NR, reduction
        )

    def _first_term(self, logits_NRK: Tensor, labels_NR: Tensor, reduction: str) -> Tensor:
        classes_K = torch.arange(logits_NRK.shape[-1], device=logits_NRK.device)
        is_class = labels_NR[..., None] == classes_K
        signed_NRK = torch.where(is_class, logits_NRK, -logits_NRK)
        term_NRK = torch.exp((self.gamma + 1) * F.logsigmoid(-signed_NRK))  # (1 - p_t)^(gamma + 1), finite anywhere
        if self.alpha is not None:
            term_NRK = term_NRK * torch.where(is_class, self.alpha, 1 - self.alpha)
        term_NRK = term_NRK * (labels_NR >= 0)[..., None]
        if reduction == "none":
            return term_NRK
        return term_NRK.sum() if reduction == "sum" else term_NRK.sum(-1)
