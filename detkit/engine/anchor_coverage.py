"""How well the anchors fit the boxes of a data set at the size that the network sees (section 4, "Anchors")."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detkit.data import ImageIndex, Sample, apply_transforms, batch_from_samples, build_transforms
from detkit.data.sampling import fixed_rng
from detkit.modeling.anchors import AnchorGrid, level_shapes
from detkit.modeling.build import build_anchors
from detkit.structures.labels import foreground

REACHED = 0.5  # the IoU from which an anchor is foreground in the paper
_MOST_IMAGES, _MOST_RARE, _MOST_PER_CLASS = 128, 128, 4
_FACTORS = tuple(2.0 ** (step / 2) for step in (0, -1, 1, -2, 2, -3, 3, -4, 4, -5, -6))  # small changes first
_LOW_SHARE, _LOW_CLASS, _MANY_MISSED = 0.7, 0.5, 0.1  # shares of boxes, of a class's boxes, of pictures
_WORTH, _NEAR_BEST = 0.05, 0.02  # a gain worth a change; a loss against the best that is not
_FEW = 10  # boxes; a share of fewer says little


@dataclass(frozen=True)
class SeenBoxes:
    """The boxes of some pictures as the network sees them in training: B boxes on N pictures.

    The first of the pictures lie in even steps over the data set; others follow, for rare classes.

    Attributes:
        sizes_N2: int64, padded (height, width) of the network's input.
        boxes_B4: float32, xyxy in pixels of the network's input.
        classes_B: int64.
        images_B: int64, the picture of each box.
        num_even: how many of the pictures lie in even steps.
        imbalance: background anchors per foreground anchor of these; None where the detector has no `assign`.
    """

    sizes_N2: Tensor
    boxes_B4: Tensor
    classes_B: Tensor
    images_B: Tensor
    num_even: int
    imbalance: float | None

    @property
    def is_even_B(self) -> Tensor:
        """Whether a box is on one of the pictures in even steps."""
        return self.images_B < self.num_even

    def reached_by(self, anchors: AnchorGrid) -> Tensor:
        """Return whether each box has an anchor of IoU 0.5 or more, [B]."""
        return anchors.best_ious(self.boxes_B4, self.sizes_N2[self.images_B]).cpu() >= REACHED

    def share(self, hit_B: Tensor) -> float:
        """Return the share of the boxes on the even pictures that are in a mask; NaN without boxes."""
        return _mean(hit_B[self.is_even_B])

    def images_missed(self, hit_B: Tensor) -> float:
        """Return the share of the even pictures with boxes that have none of a mask; NaN without such pictures."""
        images = self.images_B[self.is_even_B]
        with_hits = self.images_B[self.is_even_B & hit_B]
        return 1 - len(with_hits.unique()) / len(images.unique()) if len(images) else math.nan

    def typical_side(self) -> int:
        """Return the median shorter side of the network's input."""
        return int(self.sizes_N2.amin(1).median())


@dataclass(frozen=True)
class Coverage:
    """The fit of a detector's anchors; `advice` is empty where it is good.

    Attributes:
        reached: share of the boxes, 0..1, that have an anchor of IoU 0.5 or more.
        per_class: the same per class; NaN for a class without a box among the pictures looked at.
        images: how many pictures were looked at, but for some more for rare classes.
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
        """Return one line for a person; of many classes those that are reached least."""
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

    Looks at up to 128 pictures in even steps, and at up to as many for rare classes; reads none of them.
    """
    anchors = getattr(detector, "anchors", None)
    if not isinstance(anchors, AnchorGrid):
        return None
    seen = _seen_boxes(cfg, index, detector)
    hit_B = seen.reached_by(anchors)
    if not seen.is_even_B.any():
        return None
    names = index.class_names
    return Coverage(
        reached=seen.share(hit_B),
        per_class={name: _mean(hit_B[seen.classes_B == k]) for k, name in enumerate(names)},
        images=seen.num_even,
        images_missed=seen.images_missed(hit_B),
        background_per_foreground=seen.imbalance,
        advice=_advice(cfg.MODEL.ANCHORS, names, seen, hit_B, anchors),
    )


def _rows_to_look_at(index: ImageIndex) -> tuple[list[int], list[int]]:
    """Return rows in even steps over the index, and some others for the rarest classes."""
    even = _spread(np.arange(len(index)), _MOST_IMAGES)
    image_of_box = np.repeat(np.arange(len(index)), index.box_counts())
    rare: dict[int, None] = {}
    for k in np.argsort(index.class_counts(), kind="stable"):
        if len(rare) >= _MOST_RARE:
            break
        rare |= dict.fromkeys(_spread(np.unique(image_of_box[index.classes == k]), _MOST_PER_CLASS))
    return even, [row for row in rare if row not in set(even)][:_MOST_RARE]


def _spread(rows: NDArray[np.int64], most: int) -> list[int]:
    """Return at most so many of the rows, in even steps."""
    places = np.unique(np.linspace(0, len(rows) - 1, most).round().astype(int)) if len(rows) > most else slice(None)
    return [int(row) for row in rows[places]]


def _seen_boxes(cfg: Any, index: ImageIndex, detector: Any) -> SeenBoxes:
    """Send black pictures through the training transforms, one at a time: only their sizes and boxes are kept."""
    transforms = build_transforms(cfg.INPUT.TRAIN_TRANSFORMS)
    even, rare = _rows_to_look_at(index)
    divisor = getattr(getattr(detector, "backbone", None), "size_divisibility", 1)
    sizes, boxes, classes, in_front, behind = [], [], [], 0, 0
    for place, row in enumerate(even + rare):
        sample = apply_transforms(transforms, _black(index, row), fixed_rng(row))
        sizes.append([-(-side // divisor) * divisor for side in sample.size])
        boxes.append(torch.from_numpy(sample.boxes))
        classes.append(torch.from_numpy(sample.classes))
        if place < len(even) and hasattr(detector, "assign"):
            labels_R = _labels(detector, sample)
            in_front += int(foreground(labels_R, len(index.class_names)).sum())
            behind += int((labels_R == len(index.class_names)).sum())
    return SeenBoxes(
        sizes_N2=torch.tensor(sizes),
        boxes_B4=torch.cat(boxes),
        classes_B=torch.cat(classes),
        images_B=torch.arange(len(boxes)).repeat_interleave(torch.tensor([len(part) for part in boxes])),
        num_even=len(even),
        imbalance=behind / max(1, in_front) if hasattr(detector, "assign") else None,
    )


def _black(index: ImageIndex, row: int) -> Sample:
    size = int(index.sizes_hw[row, 0]), int(index.sizes_hw[row, 1])
    boxes, classes, _ = index.objects_of(row)
    return Sample(np.zeros((*size, 3), np.uint8), boxes, classes, size)


def _labels(detector: Any, sample: Sample) -> Tensor:
    """Return the labels [R] that the detector's assigner gives the anchors of a picture."""
    batch = batch_from_samples([sample]).to(detector.anchors.cell_anchors[0].device)
    return detector.assign(batch)[1][0]


def _advice(cfg: Any, names: Sequence[str], seen: SeenBoxes, hit_B: Tensor, anchors: AnchorGrid) -> str:
    """Return what is wrong and what would be better, as measured on the same boxes; "" where nothing is."""
    problem = _problem(names, seen, hit_B)
    if not problem:
        return ""
    ways = [*_other_sizes(cfg, seen, anchors), *_larger_input(seen, anchors), *_other_ratios(cfg, seen, hit_B, anchors)]
    worth = [way for way in ways if way.share >= seen.share(hit_B) + _WORTH]
    if not worth:
        return f"{problem} Neither anchors of other sizes or ratios nor a larger input would change that much."
    return f"{problem} Better: " + "; ".join(f"{way.text}: {_percent(way.share)} %" for way in worth) + "."


@dataclass(frozen=True)
class _Way:
    """A change, and the share of the boxes that have an anchor of IoU 0.5 or more with it."""

    text: str
    share: float


def _other_sizes(cfg: Any, seen: SeenBoxes, anchors: AnchorGrid) -> list[_Way]:
    shares = {factor: seen.share(seen.reached_by(_scaled(anchors, factor))) for factor in _FACTORS}
    factor = _smallest_of_the_best(shares)
    if not _is_of(cfg, anchors):  # a project's grid comes from keys of its own
        return [_Way(f"anchors {factor:.2f} times as large", shares[factor])]
    sizes = ", ".join(f"{size * factor:.3g}" for size in cfg.SIZES)
    return [_Way(f'MODEL.ANCHORS.SIZES "[{sizes}]"', shares[factor])]


def _larger_input(seen: SeenBoxes, anchors: AnchorGrid) -> list[_Way]:
    shares = {}
    for factor in (1 / f for f in _FACTORS if f <= 1):
        larger = replace(seen, sizes_N2=(seen.sizes_N2 * factor).round().long(), boxes_B4=seen.boxes_B4 * factor)
        shares[factor] = larger.share(larger.reached_by(anchors))
    factor = _smallest_of_the_best(shares)
    return [_Way(f"an input {factor:.1f} times as large (SIZES and MAX_SIZE of the resizing, in training and test)",
                 shares[factor])]  # fmt: skip


def _other_ratios(cfg: Any, seen: SeenBoxes, hit_B: Tensor, anchors: AnchorGrid) -> list[_Way]:
    """Return the ratios with three more, the quartiles of those of the boxes that no anchor reaches."""
    missed_B4 = seen.boxes_B4[seen.is_even_B & ~hit_B]
    if not len(missed_B4) or not _is_of(cfg, anchors):
        return []
    sides_B2 = (missed_B4[:, 2:] - missed_B4[:, :2]).double()
    quartiles = (sides_B2[:, 1] / sides_B2[:, 0]).quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    ratios = sorted({*cfg.ASPECT_RATIOS, *(float(f"{ratio:.2g}") for ratio in quartiles.tolist())})
    shapes = [level_shapes(size, stride, scales_per_octave=cfg.SCALES_PER_OCTAVE, aspect_ratios=ratios,
                           rounding=cfg.ROUNDING)
              for size, stride in zip(cfg.SIZES, anchors.strides, strict=True)]  # fmt: skip
    wider = AnchorGrid(shapes=shapes, strides=anchors.strides, offset=anchors.offset, steps=anchors.steps)
    text = ", ".join(f"{ratio:g}" for ratio in ratios)
    return [_Way(f'MODEL.ANCHORS.ASPECT_RATIOS "[{text}]"', seen.share(seen.reached_by(wider)))]


def _smallest_of_the_best(shares: Mapping[float, float]) -> float:
    """Return the first factor, as small changes come first, that is near the best."""
    return next(factor for factor, share in shares.items() if share >= max(shares.values()) - _NEAR_BEST)


def _problem(names: Sequence[str], seen: SeenBoxes, hit_B: Tensor) -> str:
    missed, where = seen.images_missed(hit_B), f"at {seen.typical_side()} px"
    if missed > _MANY_MISSED:
        return f"On {_percent(missed)} % of the pictures no box has an anchor of IoU {REACHED} or more {where}."
    if seen.share(hit_B) < _LOW_SHARE:
        return f"{_percent(1 - seen.share(hit_B))} % of the boxes have no anchor of IoU {REACHED} or more {where}."
    hits = [(name, hit_B[seen.classes_B == k]) for k, name in enumerate(names)]
    low = [f"'{name}'" for name, hit in hits if len(hit) >= _FEW and _mean(hit) < _LOW_CLASS]
    return f"Over half of the boxes of {', '.join(low)} have no anchor of IoU {REACHED} or more {where}." if low else ""


def _is_of(cfg: Any, anchors: AnchorGrid) -> bool:
    """Return whether a grid is the one that MODEL.ANCHORS describes."""
    if len(cfg.SIZES) != len(anchors.strides):
        return False
    pairs = zip(build_anchors(cfg, anchors.strides).cell_anchors, anchors.cell_anchors, strict=True)
    return all(a.shape == b.shape and torch.equal(a, b.cpu()) for a, b in pairs)


def _scaled(anchors: AnchorGrid, factor: float) -> AnchorGrid:
    """Return the same grid, on the CPU, with every anchor larger by a factor."""
    shapes = [[(float(w), float(h)) for w, h in factor * (cell_A4[:, 2:] - cell_A4[:, :2])]
              for cell_A4 in anchors.cell_anchors]  # fmt: skip
    return AnchorGrid(shapes=shapes, strides=anchors.strides, offset=anchors.offset, steps=anchors.steps)


def _mean(mask: Tensor) -> float:
    """Return the share of a mask that is true; NaN of an empty one."""
    return float(mask.double().mean())


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"
