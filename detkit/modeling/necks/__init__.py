"""Feature pyramids on a bottom-up network (socket NECKS)."""

from detkit.modeling.necks.fpn import FPN

__all__ = ["FPN"]
