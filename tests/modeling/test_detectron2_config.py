"""configs/retinanet_R50_FPN_detectron2.yaml builds the detector whose every number detectron2's RetinaNet R50 has."""

import math
from pathlib import Path

import pytest
import torch

from detkit.config import get_cfg
from detkit.modeling import build_detector
from detkit.modeling.layers import FrozenBatchNorm2d

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "retinanet_R50_FPN_detectron2.yaml"


@pytest.fixture(scope="module")
def detector():
    cfg = get_cfg()
    cfg.merge_from_file(CONFIG)
    with torch.device("meta"):  # what is asked here is structure and settings, not values
        return build_detector(cfg, 80)


def test_backbone(detector):
    net = detector.backbone.bottom_up
    assert [len(getattr(net, f"res{i}")) for i in (2, 3, 4, 5)] == [3, 4, 6, 3]
    assert net.res3[0].conv1.stride == (2, 2)
    assert net.res3[0].conv2.stride == (1, 1)
    norms = [m for m in net.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert len(norms) == 53
    assert {norm.eps for norm in norms} == {1e-5}
    frozen = {name.split(".")[0] for name, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {"stem", "res2"}


def test_neck_and_head(detector):
    neck, head = detector.backbone, detector.head
    assert neck.out_strides == {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
    assert set(neck.out_channels.values()) == {256}
    assert neck.size_divisibility == 32
    assert neck.top_block.p6.in_channels == 2048
    assert (neck.top_block.p6.stride, neck.top_block.p7.stride) == ((2, 2), (2, 2))
    assert len(head.cls_subnet) == len(head.bbox_subnet) == 8  # four convolutions with ReLU
    assert (head.cls_score.out_channels, head.bbox_pred.out_channels) == (720, 36)


def test_anchors(detector):
    assert detector.anchors.offset == 0
    assert detector.anchors.num_anchors == 9
    assert detector.anchors.strides == (8, 16, 32, 64, 128)


def test_assignment_and_losses(detector):
    criterion = detector.criterion
    assigner = criterion.assigner
    assert (assigner.positive_iou, assigner.negative_iou, assigner.low_quality) == (0.5, 0.4, "detectron2")
    assert (criterion.cls_loss.alpha, criterion.cls_loss.gamma) == (0.25, 2.0)
    assert criterion.box_loss.beta == 0.0
    assert criterion.box_loss_weight == 1.0
    assert criterion.normalizer_momentum == 0.9
    assert criterion.box_coder.weights == (1, 1, 1, 1)
    assert criterion.box_coder.max_log_ratio == pytest.approx(math.log(1000 / 16))


def test_input_and_post_processing(detector):
    cfg = get_cfg()
    cfg.merge_from_file(CONFIG)
    assert cfg.MODEL.PIXEL_MEAN == (103.53, 116.28, 123.675)
    assert cfg.MODEL.PIXEL_STD == (1, 1, 1)
    assert cfg.MODEL.PRIOR_PROB == 0.01
    assert detector.channels == "BGR"
    process = detector.postprocess
    assert (process.score_threshold, process.topk_per_level) == (0.05, 1000)
    assert (process.nms_iou, process.max_detections) == (0.5, 100)
