"""Which anchors take part in the loss (socket SAMPLERS)."""

from detkit.modeling.samplers.all_anchors import AllAnchors

__all__ = ["AllAnchors"]
