"""Prediction heads (socket HEADS)."""

from detkit.modeling.heads.retinanet_head import RetinaNetHead

__all__ = ["RetinaNetHead"]
