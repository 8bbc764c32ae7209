"""How well the anchors fit the boxes of a data set at the size that the network sees (section 4, "Anchors")."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detkit.data import ImageIndex, Sample, apply_transforms, batch_from_samples, build_transforms
from detkit.data.sampling import fixed_rng
from detkit.modeling.anchors import AnchorGrid
from detkit.structures.labels import foreground

REACHED = 0.5  # the IoU from which an anchor is foreground in the paper
_MOST_IMAGES, _MOST_PER_CLASS = 128, 4
_FACTORS = tuple(2.0 ** (step / 2) for step in (0, -1, 1, -2, 2, -3, 3, -4, 4, -5, -6))  # small changes first
_LOW_SHARE, _LOW_CLASS, _MANY_MISSED = 0.7, 0.5, 0.1  # shares of boxes, of a class's boxes, of pictures
_WORTH, _NEAR_BEST = 0.05, 0.02  # a gain worth a change; a loss against the best that is not
_FEW = 10  # boxes; a share of fewer says little


@dataclass(frozen=True)
class SeenBoxes:
    """The boxes of some pictures as the network sees them in training, B boxes on N pictures.

    Attributes:
        samples: the N pictures after the training transforms, black.
        boxes_B4: float32, xyxy in pixels of the network's input.
        classes_B: int64.
        images_B: int64, the picture of each box, an index into `samples`.
    """

    samples: Sequence[Sample]
    boxes_B4: Tensor
    classes_B: Tensor
    images_B: Tensor

    def best_ious(self, anchors: AnchorGrid, divisor: int) -> Tensor:
        """Return the largest IoU of any anchor with each box, [B], on pictures padded to multiples of `divisor`."""
        sizes = [[-(-side // divisor) * divisor for side in sample.size] for sample in self.samples]
        return anchors.best_ious(self.boxes_B4, torch.tensor(sizes)[self.images_B])

    def images_missed(self, hit_B: Tensor) -> float:
        """Return the share of the pictures with boxes that have none of a mask."""
        return 1 - len(self.images_B[hit_B].unique()) / len(self.images_B.unique())

    def typical_side(self) -> int:
        """Return the median shorter side of the network's input."""
        return int(np.median([min(sample.size) for sample in self.samples]))


@dataclass(frozen=True)
class Coverage:
    """The fit of a detector's anchors; `advice` is empty where it is good.

    Attributes:
        reached: share of the boxes, 0..1, that have an anchor of IoU 0.5 or more.
        per_class: the same per class; NaN for a class without a box among the pictures looked at.
        images: how many pictures were looked at.
        images_missed: share of the pictures with boxes, none of which is reached.
        background_per_foreground: anchors, by the detector's own assigner; None where it has no `assign`.
        advice: what to change, as a sentence.
    """

    reached: float
    per_class: Mapping[str, float]
    images: int
    images_missed: float
    background_per_foreground: float | None
    advice: str

    def text(self) -> str:
        """Return one line for a person."""
        ratio = self.background_per_foreground
        named = sorted((share, name) for name, share in self.per_class.items() if not math.isnan(share))
        classes = ", ".join(f"{name} {_percent(share)}" for share, name in named[:8])
        more = f", {len(named) - 8} more above" if len(named) > 8 else ""
        return (
            f"anchors: {_percent(self.reached)} % of the boxes have one of IoU {REACHED} or more ({classes}{more})"
            + ("" if ratio is None else f"; background to foreground {ratio:.0f}:1")
            + f" (on {self.images} pictures)"
        )


def anchor_coverage(cfg: Any, index: ImageIndex, detector: Any) -> Coverage | None:
    """Return how the anchors of `detector` fit the boxes of a training index; None where it has no AnchorGrid.

    Looks at up to 128 pictures in even steps, and at a few more for rare classes; reads none of them.
    """
    anchors = getattr(detector, "anchors", None)
    if not isinstance(anchors, AnchorGrid):
        return None
    even, all_rows = _rows_to_look_at(index)
    seen = _seen_boxes(cfg, index, all_rows)
    if not len(seen.boxes_B4):
        return None
    divisor = getattr(getattr(detector, "backbone", None), "size_divisibility", 1)
    hit_B = seen.best_ious(anchors, divisor) >= REACHED
    return Coverage(
        reached=_mean(hit_B),
        per_class={name: _mean(hit_B[seen.classes_B == k]) for k, name in enumerate(index.class_names)},
        images=len(seen.samples),
        images_missed=seen.images_missed(hit_B),
        background_per_foreground=_imbalance(detector, seen.samples[: len(even)], len(index.class_names)),
        advice=_advice(cfg.MODEL.ANCHORS.SIZES, index.class_names, seen, hit_B, anchors, divisor),
    )


def _rows_to_look_at(index: ImageIndex) -> tuple[list[int], list[int]]:
    """Return rows in even steps over the index, and these followed by some for the rarer classes."""
    even = _spread(np.arange(len(index)), _MOST_IMAGES)
    image_of_box = np.repeat(np.arange(len(index)), index.box_counts())
    rare = [_spread(np.unique(image_of_box[index.classes == k]), _MOST_PER_CLASS)
            for k in range(len(index.class_names))]  # fmt: skip
    return even, even + sorted({row for rows in rare for row in rows} - set(even))


def _spread(rows: NDArray[np.int64], most: int) -> list[int]:
    """Return at most so many of the rows, in even steps."""
    places = np.unique(np.linspace(0, len(rows) - 1, most).round().astype(int)) if len(rows) > most else slice(None)
    return [int(row) for row in rows[places]]


def _seen_boxes(cfg: Any, index: ImageIndex, rows: Sequence[int]) -> SeenBoxes:
    transforms = build_transforms(cfg.INPUT.TRAIN_TRANSFORMS)
    samples = []
    for row in rows:
        size = int(index.sizes_hw[row, 0]), int(index.sizes_hw[row, 1])
        black = np.zeros((*size, 3), np.uint8)
        sample = Sample(black, index.boxes_of(row), index.classes_of(row).astype(np.int64), size)
        samples.append(apply_transforms(transforms, sample, fixed_rng(row)))
    return SeenBoxes(
        samples=samples,
        boxes_B4=torch.from_numpy(np.concatenate([sample.boxes for sample in samples])),
        classes_B=torch.from_numpy(np.concatenate([sample.classes for sample in samples])),
        images_B=torch.arange(len(samples)).repeat_interleave(torch.tensor([len(s.boxes) for s in samples])),
    )


def _imbalance(detector: Any, samples: Sequence[Sample], num_classes: int) -> float | None:
    """Return the background anchors per foreground anchor of these pictures, by the detector's own assigner."""
    if not hasattr(detector, "assign"):
        return None
    in_front = behind = 0
    for sample in samples:
        _, labels_NR, _ = detector.assign(batch_from_samples([sample]))
        in_front += int(foreground(labels_NR, num_classes).sum())
        behind += int((labels_NR == num_classes).sum())
    return behind / max(1, in_front)


def _advice(
    sizes: Sequence[float], names: Sequence[str], seen: SeenBoxes, hit_B: Tensor, anchors: AnchorGrid, divisor: int
) -> str:
    """Return what is wrong and what would be better, as measured on the same boxes; "" where nothing is."""
    problem = _problem(names, seen, hit_B)
    if not problem:
        return ""
    shares = {factor: _mean(seen.best_ious(_scaled(anchors, factor), divisor) >= REACHED) for factor in _FACTORS}
    factor = next(f for f, share in shares.items() if share >= max(shares.values()) - _NEAR_BEST)
    if shares[factor] < _mean(hit_B) + _WORTH:
        return (
            f"{problem} No other MODEL.ANCHORS.SIZES would reach many more: their shapes lie outside of "
            "MODEL.ANCHORS.ASPECT_RATIOS, or they are too small for the finest level. Widen the ratios, or enlarge the "
            "input (INPUT.TRAIN_TRANSFORMS, INPUT.TEST_TRANSFORMS)."
        )
    better = ", ".join(f"{size * factor:.3g}" for size in sizes)
    larger = f", or an input {1 / factor:.1f} times as large" if factor < 1 else ""
    return f"{problem} Use MODEL.ANCHORS.SIZES [{better}], which reaches {_percent(shares[factor])} %{larger}."


def _problem(names: Sequence[str], seen: SeenBoxes, hit_B: Tensor) -> str:
    missed, at = seen.images_missed(hit_B), f"at {seen.typical_side()} px"
    if missed > _MANY_MISSED:
        return f"{_percent(missed)} % of the pictures with boxes have no foreground anchor {at}."
    if _mean(hit_B) < _LOW_SHARE:
        return f"{_percent(1 - _mean(hit_B))} % of the boxes are out of reach of every anchor {at}."
    hits = [(name, hit_B[seen.classes_B == k]) for k, name in enumerate(names)]
    low = [f"'{name}'" for name, hit in hits if len(hit) >= _FEW and _mean(hit) < _LOW_CLASS]
    return f"Over half of the boxes of {', '.join(low)} are out of reach of every anchor {at}." if low else ""


def _scaled(anchors: AnchorGrid, factor: float) -> AnchorGrid:
    """Return the same grid with every anchor larger by a factor."""
    shapes = [[(float(w), float(h)) for w, h in factor * (cell_A4[:, 2:] - cell_A4[:, :2])]
              for cell_A4 in anchors.cell_anchors]  # fmt: skip
    return AnchorGrid(shapes=shapes, strides=anchors.strides, offset=anchors.offset)


def _mean(mask: Tensor) -> float:
    """Return the share of a mask that is true; NaN of an empty one."""
    return float(mask.double().mean())


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"
