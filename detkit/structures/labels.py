"""The one convention for labels: 0..K-1 a class, K background, -1 ignored, where K is the number of foreground classes.

Padding of ground-truth classes is also -1: a padded row is nobody's ground truth.
"""

from __future__ import annotations

from torch import Tensor

IGNORED = -1


def foreground(labels: Tensor, num_classes: int) -> Tensor:
    """Return a bool mask of the labels that are a class, of the shape of `labels`."""
    return (labels >= 0) & (labels < num_classes)


def is_assigned(labels: Tensor) -> Tensor:
    """Return a bool mask of the labels that take part in the loss: a class or background, not ignored."""
    return labels >= 0
