from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from detkit.structures import Detections


@pytest.fixture
def make_index():
    """Return a function from images, each a list of (class, xyxy box[, is_crowd]), to the fields of an ImageIndex."""

    def make(images, class_names=("cat", "dog"), category_ids=(3, 17), image_ids=None):
        rows = [(*row, False)[:3] for image in images for row in image]
        boxes = np.array([row[1] for row in rows], dtype=np.float32).reshape(-1, 4)
        return SimpleNamespace(
            image_ids=np.array(image_ids or [100 + 7 * i for i in range(len(images))], dtype=np.int64),
            sizes_hw=np.full((len(images), 2), 400, dtype=np.int32),
            box_offsets=np.cumsum([0, *map(len, images)]).astype(np.int64),
            boxes=boxes,
            classes=np.array([row[0] for row in rows], dtype=np.int32),
            is_crowd=np.array([row[2] for row in rows], dtype=bool),
            areas=((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).astype(np.float32),
            class_names=tuple(class_names),
            category_ids=tuple(category_ids),
        )

    return make


@pytest.fixture
def make_found():
    """Return a function from (class, score, xyxy box) rows to Detections, by falling score."""

    def make(*rows):
        rows = sorted(rows, key=lambda row: -row[1])
        return Detections(
            torch.tensor([row[2] for row in rows], dtype=torch.float32).reshape(-1, 4),
            torch.tensor([row[1] for row in rows], dtype=torch.float32),
            torch.tensor([row[0] for row in rows], dtype=torch.int64),
        )

    return make


@pytest.fixture
def random_case(make_index, make_found):
    """An index of 12 images of three classes with small to large boxes and crowds, and imperfect detections."""
    rng = np.random.default_rng(5)

    def box(low, high):
        side, corner = rng.uniform(low, high, 2), rng.uniform(0, 200, 2)
        return [round(float(v), 2) for v in (*corner, *(corner + side))]

    images = [
        [(int(rng.integers(3)), box(8, 180), bool(rng.random() < 0.1)) for _ in range(rng.integers(0, 7))]
        for _ in range(12)
    ]
    found = []
    for image in images:
        near = [(k, rng.random(), (np.array(b) + rng.normal(0, 3, 4)).tolist()) for k, b, _ in image for _ in "ab"]
        found.append(make_found(*near, *[(int(rng.integers(3)), rng.random(), box(8, 90)) for _ in range(3)]))
    return make_index(images, ("a", "b", "c"), (9, 2, 40)), found
