"""The tensors that rooms hand to each other: labels, boxes, batches, detections."""

from detkit.structures.batch import Batch
from detkit.structures.detections import Detections
from detkit.structures.labels import IGNORED, foreground, is_assigned

__all__ = ["IGNORED", "Batch", "Detections", "foreground", "is_assigned"]
