"""A detector small enough for tests, and batches for it."""

import pytest
import torch

import detkit.modeling  # noqa: F401 (registers the components)
from detkit.config import get_cfg
from detkit.structures import Batch

NARROW = [
    *("MODEL.BACKBONE.ResNet.DEPTH", 18),
    *("MODEL.BACKBONE.ResNet.NORM", "GN"),
    *("MODEL.BACKBONE.ResNet.FREEZE_AT", 0),
    *("MODEL.BACKBONE.ResNet.STEM_CHANNELS", 8),
    *("MODEL.BACKBONE.ResNet.RES2_CHANNELS", 8),
    *("MODEL.NECK.FPN.OUT_CHANNELS", 16),
    *("MODEL.HEAD.RetinaNetHead.NUM_CONVS", 1),
]


@pytest.fixture
def cfg():
    """The defaults with a narrow ResNet-18 that trains from scratch."""
    cfg = get_cfg()
    cfg.merge_from_list(NARROW)
    return cfg


@pytest.fixture
def make_batch():
    """A function of (height, width) per image that returns a batch with a few random boxes on each."""

    def make(*sizes, num_classes=3, boxes_per_image=3, seed=0):
        generator = torch.Generator().manual_seed(seed)
        images, boxes, classes = [], [], []
        for height, width in sizes:
            images.append(torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8))
            corners = torch.rand(boxes_per_image, 2, 2, generator=generator).sort(1).values
            boxes.append((corners * torch.tensor([width, height])).flatten(1))
            classes.append(torch.randint(0, num_classes, (boxes_per_image,), generator=generator))
        return Batch.from_images(images, boxes=boxes, classes=classes, seeds=list(range(len(sizes))))

    return make
