"""What the loader hands to a detector. N images, H x W the padded size, G ground truths padded to the largest count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.structures.labels import IGNORED


@dataclass
class Batch:
    """A padded batch of pictures and their ground truth.

    Attributes:
        images: [N, 3, H, W] uint8, RGB, padded right and bottom with zeros.
        image_sizes: [N, 2] int64 (height, width) of each picture inside the padding.
        original_sizes: [N, 2] int64 (height, width) before resizing, in whose pixels detections are given.
        image_ids: [N] int64, unique within a data set.
        gt_boxes_NG4: float32, xyxy in pixels of `images`; padding rows are zero. G may be 0.
        gt_classes_NG: int64, 0..K-1; padding rows are -1.
        seeds: [N] int64, a pure function of (seed, iteration, image id); zeros in evaluation.
    """

    images: Tensor
    image_sizes: Tensor
    original_sizes: Tensor
    image_ids: Tensor
    gt_boxes_NG4: Tensor
    gt_classes_NG: Tensor
    seeds: Tensor

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch on another device."""
        return Batch(**{k: v.to(device, non_blocking=non_blocking) for k, v in vars(self).items()})

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory (called by torch's DataLoader)."""
        return Batch(**{k: v.pin_memory() for k, v in vars(self).items()})

    @classmethod
    def from_images(
        cls,
        images: list[Tensor],
        *,
        boxes: list[Tensor] | None = None,
        classes: list[Tensor] | None = None,
        original_sizes: list[tuple[int, int]] | None = None,
        image_ids: list[int] | None = None,
        seeds: list[int] | None = None,
    ) -> Batch:
        """Pad pictures [3, h, w] uint8 and their ground truth (boxes [g, 4], classes [g]) into one batch.

        Without `boxes` there is no ground truth; without `original_sizes` the pictures were not resized; without
        `image_ids` they count from 0. An empty list is an error: a batch has a size.
        """
        if not images:
            raise ValueError("a batch needs at least one picture")
        n = len(images)
        boxes = boxes if boxes is not None else [torch.zeros(0, 4)] * n
        classes = classes if classes is not None else [torch.zeros(0, dtype=torch.int64)] * n
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        height, width = (max(side) for side in zip(*sizes, strict=True))
        padded = torch.zeros(n, 3, height, width, dtype=torch.uint8)
        most = max(len(c) for c in classes)
        gt_boxes = torch.zeros(n, most, 4)
        gt_classes = torch.full((n, most), IGNORED, dtype=torch.int64)
        for i, (image, box, label) in enumerate(zip(images, boxes, classes, strict=True)):
            padded[i, :, : sizes[i][0], : sizes[i][1]] = image
            gt_boxes[i, : len(label)] = box
            gt_classes[i, : len(label)] = label
        return cls(
            images=padded,
            image_sizes=torch.tensor(sizes, dtype=torch.int64),
            original_sizes=torch.tensor(original_sizes or sizes, dtype=torch.int64),
            image_ids=torch.tensor(image_ids if image_ids is not None else range(n), dtype=torch.int64),
            gt_boxes_NG4=gt_boxes,
            gt_classes_NG=gt_classes,
            seeds=torch.tensor(seeds or [0] * n, dtype=torch.int64),
        )
