"""The data that the operations are measured on, and how much of it. All of it comes from fixed seeds.

Suffixes: R anchors or boxes, K classes, N images, G ground truths.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.modeling.anchors import AnchorGrid, retinanet_shapes

_STRIDES = (8, 16, 32, 64, 128)  # P3..P7
_PRIOR = math.log(0.01 / 0.99)  # the bias of RetinaNet's classification head at the start
JITTER = 0.1  # of an anchor's size


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    rounds: int
    anchors: int  # rows of logits
    classes: int
    many: int  # boxes of the large NMS
    growth: tuple[int, ...]  # numbers of boxes of the picture; the exponent is taken over those from `growth_from`
    growth_from: int
    few: int  # boxes of the small NMS
    grouped: int  # boxes of batched_nms
    matched: int  # anchors of match_anchors
    images: int
    ground_truths: int  # per image, at most


FULL = Sizes(
    rounds=9,
    anchors=120_000,
    classes=80,
    many=100_000,
    growth=(1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000),
    growth_from=20_000,
    few=1_000,
    grouped=5_000,
    matched=95_000,
    images=16,
    ground_truths=300,
)
QUICK = Sizes(
    rounds=2,
    anchors=2_000,
    classes=20,
    many=2_000,
    growth=(500, 1_000, 2_000),
    growth_from=500,
    few=500,
    grouped=500,
    matched=2_000,
    images=2,
    ground_truths=20,
)


def picture_anchors(count: int) -> tuple[Tensor, int, int]:
    """Return RetinaNet's anchors [count, 4] of a 3:5 picture that has just so many, and its height and width.

    P3..P7, 9 per cell; the sides are multiples of 8, and of the anchors that are too many some are left out at random.
    """
    shapes = [retinanet_shapes(4.0 * s, scales_per_octave=3, aspect_ratios=(0.5, 1.0, 2.0)) for s in _STRIDES]
    grid = AnchorGrid(shapes=shapes, strides=_STRIDES)
    sides = ((height, math.ceil(height * 5 / 3 / 8) * 8) for height in itertools.count(8, 8))
    height, width = next(s for s in sides if 9 * sum(h * w for h, w in grid.sizes_for(*s)) >= count)
    anchors_R4 = torch.cat(grid(grid.sizes_for(height, width)))
    left_R = torch.randperm(len(anchors_R4), generator=_generator())[:count].sort().values
    return anchors_R4[left_R], height, width


def dense_boxes(count: int) -> tuple[Tensor, Tensor]:
    """Return boxes [count, 4] like those of a dense head, and scores [count] in 0..1.

    Each coordinate of an anchor of `picture_anchors` is moved by a normal deviate of a tenth of the anchor's size.
    """
    anchors_R4, _, _ = picture_anchors(count)
    generator = _generator()
    sizes_R4 = (anchors_R4[:, 2:] - anchors_R4[:, :2]).repeat(1, 2)
    boxes_R4 = anchors_R4 + JITTER * sizes_R4 * torch.randn(count, 4, generator=generator)
    return boxes_R4, torch.rand(count, generator=generator)


def head_outputs(rows: int, classes: int, dtype: torch.dtype, *, ignored: bool) -> tuple[Tensor, Tensor]:
    """Return logits [rows, classes], normal with standard deviation 2 around the prior, and labels [rows] int64.

    1 % of the labels is a class, 1 % is ignored where asked for, the rest is background.
    """
    generator = _generator()
    logits_RK = (2 * torch.randn(rows, classes, generator=generator) + _PRIOR).to(dtype)
    draw_R = torch.rand(rows, generator=generator)
    labels_R = torch.where(draw_R < 0.01, torch.randint(classes, (rows,), generator=generator), classes)
    return logits_RK, torch.where(draw_R > 0.99, -1, labels_R) if ignored else labels_R


def ground_truth(images: int, most: int, classes: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return boxes [N, G, 4] and classes [N, G], -1 where padded; the first image has G = `most`, the others 1..G.

    Sides are between 16 pixels and half the picture, uniform in their logarithm.
    """
    generator = _generator()
    size_2 = torch.tensor([width, height])
    sides_NG2 = 16 * (size_2 / 32) ** torch.rand(images, most, 2, generator=generator)
    corner_NG2 = (size_2 - sides_NG2) * torch.rand(images, most, 2, generator=generator)
    classes_NG = torch.randint(classes, (images, most), generator=generator)
    counts_N1 = torch.randint(1, most + 1, (images, 1), generator=generator)
    counts_N1[0] = most
    padded_NG = torch.arange(most) >= counts_N1
    boxes_NG4 = torch.cat([corner_NG2, corner_NG2 + sides_NG2], -1)
    return boxes_NG4.masked_fill(padded_NG[..., None], 0), classes_NG.masked_fill(padded_NG, -1)


def kinds_of(count: int, share: float) -> Tensor:
    """Return kinds [count] uint8: 0, a positive, for that share of them, 1 for the rest."""
    return (torch.rand(count, generator=_generator()) >= share).to(torch.uint8)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
