"""Operations of dense detection: compiled kernels where there are some, else a PyTorch reference of equal results."""

from detkit.ops.losses import sigmoid_focal_loss, sigmoid_focal_loss_star, sigmoid_hinge_loss
from detkit.ops.matching import match_anchors
from detkit.ops.suppression import batched_nms, nms, nms_mask

__all__ = [
    "batched_nms",
    "match_anchors",
    "nms",
    "nms_mask",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_star",
    "sigmoid_hinge_loss",
]
