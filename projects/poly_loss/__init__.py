"""An example project: a classification loss of the literature, registered from outside detkit."""

from poly_loss.poly_loss import PolyFocalLoss

__all__ = ["PolyFocalLoss"]
