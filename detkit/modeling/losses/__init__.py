"""Losses (sockets CLS_LOSSES and BOX_LOSSES)."""

from detkit.modeling.losses.box import GIoU, SmoothL1
from detkit.modeling.losses.classification import BalancedCrossEntropy, FocalLossStar, HingeLoss, SigmoidFocalLoss

__all__ = ["BalancedCrossEntropy", "FocalLossStar", "GIoU", "HingeLoss", "SigmoidFocalLoss", "SmoothL1"]
