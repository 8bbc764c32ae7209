"""Whole detectors (socket DETECTORS)."""

from detkit.modeling.detectors.retinanet import RawOutputs, RetinaNet

__all__ = ["RawOutputs", "RetinaNet"]
