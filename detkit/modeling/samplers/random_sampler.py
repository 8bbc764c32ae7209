"""A random choice of anchors with a bounded share of positives."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from detkit.modeling.samplers.ranking import NEGATIVE, POSITIVE, candidates, cut_to, first_of_kinds
from detkit.registry import SAMPLERS
from detkit.structures import foreground, is_assigned


@SAMPLERS.register()
class RandomSampler:
    """Chooses anchors of each image at random, up to a share of positives (Faster R-CNN's RPN, section 3.1.3).

    The choice is a pure function of the seed, the iteration and the image.

    Args:
        batch_size: anchors of an image; fewer where there are fewer.
        positive_fraction: the largest share of positives, in [0, 1]; negatives fill the rest.
    """

    def __init__(self, num_classes: int, *, batch_size: int = 256, positive_fraction: float = 0.5) -> None:
        if batch_size < 1:
            raise ValueError(f"RandomSampler: batch_size {batch_size} is below 1")
        if not 0 <= positive_fraction <= 1:
            raise ValueError(f"RandomSampler: positive_fraction {positive_fraction} is not in [0, 1]")
        self.num_classes = num_classes
        self.batch_size = batch_size
        self.most_positives = int(batch_size * positive_fraction)

    def __call__(
        self,
        labels_NR: Tensor,
        *,
        anchors: Tensor,
        boxes: Callable[[], Tensor],
        loss: Callable[[str], Tensor],
        rng: Callable[[], Tensor],
    ) -> Tensor:
        """Return the selection [N, R]."""
        are_positive = foreground(labels_NR, self.num_classes)
        scores_NR = candidates(rng(), is_assigned(labels_NR))
        kinds_NR = torch.where(are_positive, POSITIVE, NEGATIVE)
        selected_NR = first_of_kinds(scores_NR, kinds_NR, [self.batch_size, self.most_positives])
        positives_NR = selected_NR & are_positive
        left_N = self.batch_size - positives_NR.sum(1)
        return positives_NR | cut_to(selected_NR & ~are_positive, scores_NR, left_N, self.batch_size)
