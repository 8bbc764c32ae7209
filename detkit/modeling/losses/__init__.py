"""Losses (sockets CLS_LOSSES and BOX_LOSSES)."""

from detkit.modeling.losses.box import GIoU, SmoothL1
from detkit.modeling.losses.classification import SigmoidFocalLoss

__all__ = ["GIoU", "SigmoidFocalLoss", "SmoothL1"]
