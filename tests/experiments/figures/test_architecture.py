"""Figure 3 is read from the modules: another config is another picture."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detkit.config import get_cfg
from detkit.experiments.figures import FigureError, figure_3, read_architecture
from detkit.registry import DETECTORS, HEADS


@pytest.fixture
def config():
    def make(*overrides):
        cfg = get_cfg()
        cfg.merge_from_list(["DATASETS.TRAIN", ["coco_2017_train"], *overrides])
        return cfg

    return make


def texts(architecture):
    return " | ".join(text.get_text().replace("\n", " ") for text in figure_3(architecture).axes[0].texts)


def test_the_papers_detector(config):
    found = read_architecture(config())
    assert [(s.name, s.channels, s.stride, s.is_used) for s in found.stages] == [
        ("stem", 64, 4, False), ("res2", 256, 4, False),
        ("res3", 512, 8, True), ("res4", 1024, 16, True), ("res5", 2048, 32, True),
    ]  # fmt: skip
    assert [s.blocks for s in found.stages[1:]] == [f"{n} × Bottleneck" for n in (3, 4, 6, 3)]
    assert [(x.name, x.channels, x.stride, x.lateral) for x in found.levels] == [
        ("p3", 256, 8, "res3"), ("p4", 256, 16, "res4"), ("p5", 256, 32, "res5"),
        ("p6", 256, 64, ""), ("p7", 256, 128, ""),
    ]  # fmt: skip
    assert found.top_block == ("p6: 3×3 conv, stride 2", "p7: 3×3 conv, stride 2")
    assert found.top_from == "res5"
    assert found.classes == (type(found.classes))(256, (256,) * 4, 720, (3,) * 5)
    assert found.boxes.out_channels == 36
    assert (found.num_classes, found.num_anchors) == (80, 9)
    drawn = texts(found)
    for text in ("res4: 6 × Bottleneck", "P7 stride 128", "W × H × KA = W × H × 720", "W × H × 4A = W × H × 36",
                 "4 × 3×3 conv", "K = 80 classes, A = 9"):  # fmt: skip
        assert text in drawn


RESNET = "MODEL.BACKBONE.ResNet"
CHANGES = [
    ([f"{RESNET}.DEPTH", 101], "res4: 23 × Bottleneck"),
    ([f"{RESNET}.DEPTH", 18], "res5: 2 × BasicBlock stride 32, 512 channels"),
    ([f"{RESNET}.DEPTH", 101, f"{RESNET}.NUM_GROUPS", 32, f"{RESNET}.WIDTH_PER_GROUP", 8], "Bottleneck, 32 groups"),
    (["MODEL.HEAD.RetinaNetHead.NUM_CONVS", 2], "2 × 3×3 conv"),
    (["MODEL.HEAD.RetinaNetHead.CHANNELS", 32], "W × H × 32"),
    (["MODEL.NECK.FPN.OUT_CHANNELS", 96], "P5 stride 32, 96 channels"),
    ([f"{RESNET}.OUT_FEATURES", ["res2", "res3", "res4"], "MODEL.ANCHORS.SIZES", [8, 9, 10, 11, 12]], "P2 stride 4"),
    (["MODEL.ANCHORS.SCALES_PER_OCTAVE", 2], "A = 6 anchors"),
    (["DATASETS.TRAIN", ["shapes:train,images=3,level=easy"]], "W × H × KA = W × H × 27"),
]


@pytest.mark.parametrize(("overrides", "expected"), CHANGES, ids=[text for _, text in CHANGES])
def test_a_change_of_the_config_shows(config, overrides, expected):
    assert expected not in texts(read_architecture(config()))
    assert expected in texts(read_architecture(config(*overrides)))


def test_levels_and_top_block(config):
    found = read_architecture(config(f"{RESNET}.OUT_FEATURES", ["res4", "res5"], "MODEL.ANCHORS.SIZES", [8, 9, 10, 11],
                                     "MODEL.NECK.FPN.TOP_BLOCK_FROM", "P5"))  # fmt: skip
    assert [level.name for level in found.levels] == ["p4", "p5", "p6", "p7"]
    assert found.top_from == "p5"
    assert "P3" not in texts(found)


def test_a_head_without_convolutions(config):
    found = read_architecture(config("MODEL.HEAD.RetinaNetHead.NUM_CONVS", 0))
    assert found.classes.widths == ()
    assert " × 3×3 conv" not in texts(found).replace("4A", "")


def test_nothing_is_allocated_and_the_state_of_torch_stays(config):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    read_architecture(config())
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_head_of_another_make_is_named(config):
    class Plain(nn.Module):
        def __init__(self, in_channels, num_anchors, num_logits):
            super().__init__()

    HEADS.register(Plain)
    try:
        with pytest.raises(FigureError, match="the head Plain has no 'cls_subnet'"):
            read_architecture(config("MODEL.HEAD.NAME", "Plain"))
    finally:
        HEADS.unregister("Plain")


def test_a_detector_of_another_make_is_named(config):
    class Other(nn.Module):
        @classmethod
        def from_config(cls, cfg, num_classes):
            return cls()

    DETECTORS.register(Other)
    try:
        with pytest.raises(FigureError, match="the detector Other has no 'backbone'"):
            read_architecture(config("MODEL.DETECTOR.NAME", "Other"))
    finally:
        DETECTORS.unregister("Other")
