"""What happens to a picture and its boxes between the file and the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detkit.data.resizing import bilinear, detectron_size, scale_pixel_corners, torchvision_size
from detkit.registry import TRANSFORMS

_MIN_SIDE = 1e-5  # pixels; detectron2's limit for a box that a transform has left over


@dataclass(frozen=True)
class Sample:
    """A picture with its ground truth.

    Attributes:
        image: [H, W, 3] uint8, RGB.
        boxes: float32 [g, 4], xyxy in pixels of `image`; g may be 0.
        classes: int64 [g].
        original_size: (height, width) of the picture as read, in whose pixels detections are given.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    original_size: tuple[int, int]

    @classmethod
    def of_image(cls, image: NDArray[np.uint8]) -> Sample:
        """Return a picture without ground truth."""
        return cls(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), (image.shape[0], image.shape[1]))

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the picture as it is now."""
        return self.image.shape[0], self.image.shape[1]


Transform = Callable[[Sample, np.random.Generator], Sample]


def apply_transforms(transforms: Sequence[Transform], sample: Sample, rng: np.random.Generator) -> Sample:
    """Return the sample after all transforms, with its boxes clipped to the picture and those left empty dropped."""
    for transform in transforms:
        sample = transform(sample, rng)
    height, width = sample.size
    limits = np.array([width, height, width, height], dtype=np.float32)
    boxes = np.minimum(np.maximum(sample.boxes, 0), limits)
    left = np.asarray((boxes[:, 2:] - boxes[:, :2] > _MIN_SIDE).all(1))
    return replace(sample, boxes=boxes[left], classes=sample.classes[left])


@TRANSFORMS.register()
class ResizeShortestEdge:
    """Resize so that the shorter side gets a size, and the longer side no more than a limit; the ratio stays.

    Sizes, rounding, filter and boxes are those of a library. Every side is at least 1.

    Args:
        sizes: lengths of the shorter side in pixels, one of which is drawn; the two ends for sampling "range".
        max_size: largest length of the longer side in pixels.
        sampling: "choice" draws one of `sizes`; "range" any whole number between two of them, both included.
        style: "detectron2": sides rounded half up, Pillow's bilinear filter, which averages where it shrinks, boxes
            scaled by new / old of each axis; "detectron": sides rounded half to even, a bilinear filter that averages
            nothing, boxes scaled as indices of pixels; "torchvision": sides cut to whole pixels, the same filter, boxes
            by new / old of each axis.
    """

    def __init__(
        self,
        *,
        sizes: tuple[int, ...] = (600,),
        max_size: int = 1000,
        sampling: Literal["choice", "range"] = "choice",
        style: Literal["detectron2", "detectron", "torchvision"] = "detectron2",
    ) -> None:
        if not sizes or min(sizes) < 1 or max_size < 1:
            raise ValueError(f"ResizeShortestEdge: SIZES {sizes} and MAX_SIZE {max_size} must be lengths of 1 or more")
        if sampling not in ("choice", "range"):
            raise ValueError(f"ResizeShortestEdge: SAMPLING is {sampling!r}, not 'choice' or 'range'")
        if sampling == "range" and (len(sizes) != 2 or sizes[0] > sizes[1]):
            raise ValueError(f"ResizeShortestEdge: SAMPLING 'range' needs SIZES (low, high), not {sizes}")
        if style not in _RESIZE:
            raise ValueError(f"ResizeShortestEdge: STYLE is {style!r}, not one of {', '.join(map(repr, _RESIZE))}")
        self.sizes, self.max_size, self.sampling, self.style = tuple(sizes), max_size, sampling, style

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample resized to a drawn size."""
        return _RESIZE[self.style](sample, self._draw(rng), self.max_size)

    def _draw(self, rng: np.random.Generator) -> int:
        if self.sampling == "range":
            return int(rng.integers(self.sizes[0], self.sizes[1], endpoint=True))
        return self.sizes[int(rng.integers(len(self.sizes)))] if len(self.sizes) > 1 else self.sizes[0]


@TRANSFORMS.register()
class RandomFlip:
    """Mirror the picture at random, left to right (x becomes W - x) and, where that is wanted, top to bottom.

    Args:
        prob: how often left to right, from 0 (never) to 1 (always).
        vertical_prob: how often top to bottom; for pictures without an up and down (from above, of surfaces, of cells).
    """

    def __init__(self, *, prob: float = 0.5, vertical_prob: float = 0.0) -> None:
        for name, value in (("PROB", prob), ("VERTICAL_PROB", vertical_prob)):
            if not 0 <= value <= 1:
                raise ValueError(f"RandomFlip: {name} is {value}, not between 0 and 1")
        self.prob, self.vertical_prob = prob, vertical_prob

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample, mirrored or not."""
        sample = flip(sample) if rng.random() < self.prob else sample
        if self.vertical_prob and rng.random() < self.vertical_prob:
            return flip_vertically(sample)
        return sample


def resized_size(size: tuple[int, int], shorter: int, max_size: int) -> tuple[int, int]:
    """Return (height, width) scaled so that the shorter side is `shorter`, or the longer one `max_size` if less."""
    scale = shorter / min(size)
    sides = [float(shorter) if side == min(size) else scale * side for side in size]
    if max(sides) > max_size:
        shrink = max_size / max(sides)
        sides = [side * shrink for side in sides]
    height, width = (max(1, int(side + 0.5)) for side in sides)
    return height, width


def resize(sample: Sample, size: tuple[int, int]) -> Sample:
    """Return the sample with its picture resized to (height, width) and its boxes scaled by new / old per axis."""
    if size == sample.size:
        return sample
    picture = Image.fromarray(sample.image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return replace(sample, image=np.asarray(picture), boxes=_scaled(sample, size))


def _as_detectron2(sample: Sample, shorter: int, max_size: int) -> Sample:
    return resize(sample, resized_size(sample.size, shorter, max_size))


def _as_detectron(sample: Sample, shorter: int, max_size: int) -> Sample:
    size, factor = detectron_size(sample.size, shorter, max_size)
    image, boxes = bilinear(sample.image, size, factor), scale_pixel_corners(sample.boxes, factor)
    return replace(sample, image=image, boxes=boxes)


def _as_torchvision(sample: Sample, shorter: int, max_size: int) -> Sample:
    size = torchvision_size(sample.size, shorter, max_size)
    return replace(sample, image=bilinear(sample.image, size), boxes=_scaled(sample, size))


_RESIZE = {"detectron2": _as_detectron2, "detectron": _as_detectron, "torchvision": _as_torchvision}


def _scaled(sample: Sample, size: tuple[int, int]) -> NDArray[np.float32]:
    """Return the boxes scaled by new / old of each axis."""
    down, across = size[0] / sample.size[0], size[1] / sample.size[1]
    return (sample.boxes * np.array([across, down, across, down])).astype(np.float32)


def flip(sample: Sample) -> Sample:
    """Return the sample mirrored left to right."""
    x0, y0, x1, y1 = sample.boxes.T
    width = np.float32(sample.size[1])
    return replace(sample, image=sample.image[:, ::-1], boxes=np.stack([width - x1, y0, width - x0, y1], 1))


def flip_vertically(sample: Sample) -> Sample:
    """Return the sample mirrored top to bottom."""
    x0, y0, x1, y1 = sample.boxes.T
    height = np.float32(sample.size[0])
    return replace(sample, image=sample.image[::-1], boxes=np.stack([x0, height - y1, x1, height - y0], 1))
