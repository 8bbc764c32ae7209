"""What a detector returns for one picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Detections:
    """Detections of one picture, by falling score. D may be 0.

    Attributes:
        boxes: [D, 4] float32, xyxy in pixels of the original picture, clipped to it, none empty.
        scores: [D] float32 in [0, 1].
        classes: [D] int64 in 0..K-1.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return int(self.scores.shape[0])

    def to(self, device: torch.device | str) -> Detections:
        """Return the detections on another device."""
        return Detections(self.boxes.to(device), self.scores.to(device), self.classes.to(device))

    def above(self, score: float) -> Detections:
        """Return the detections whose score is at least `score`."""
        keep = self.scores >= score
        return Detections(self.boxes[keep], self.scores[keep], self.classes[keep])
