"""Operations of dense detection: compiled kernels where there are some, else a PyTorch reference of equal results."""

from detkit.ops.focal_loss import sigmoid_focal_loss
from detkit.ops.matching import match_anchors
from detkit.ops.suppression import batched_nms, nms, nms_mask

__all__ = ["batched_nms", "match_anchors", "nms", "nms_mask", "sigmoid_focal_loss"]
