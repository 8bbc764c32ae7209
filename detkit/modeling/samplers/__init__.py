"""Which anchors take part in the loss (socket SAMPLERS)."""

from detkit.modeling.samplers.all_anchors import AllAnchors
from detkit.modeling.samplers.ohem import OHEM, OHEM1to3
from detkit.modeling.samplers.random_sampler import RandomSampler

__all__ = ["OHEM", "AllAnchors", "OHEM1to3", "RandomSampler"]
