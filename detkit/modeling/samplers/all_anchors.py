"""No sampling: the focal loss works on all anchors."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from detkit.registry import SAMPLERS
from detkit.structures import is_assigned


@SAMPLERS.register()
class AllAnchors:
    """Selects every anchor that is not ignored (RetinaNet, section 4.1, "Focal Loss")."""

    def __call__(
        self,
        labels_NR: Tensor,
        *,
        anchors: Tensor,
        boxes: Callable[[], Tensor],
        loss: Callable[[str], Tensor],
        rng: Callable[[], Tensor],
    ) -> Tensor:
        """Return labels >= 0."""
        return is_assigned(labels_NR)
