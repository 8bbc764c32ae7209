"""configs/retinanet_R50_FPN_detectron2.yaml builds the detector whose every number detectron2's RetinaNet R50 has."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from detkit.config import get_cfg
from detkit.data import build_transforms
from detkit.data.transforms import RandomFlip, ResizeShortestEdge, resized_size
from detkit.modeling import build_detector
from detkit.modeling.layers import FrozenBatchNorm2d
from detkit.solver import build_optimizer, build_schedule, plan_of

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "retinanet_R50_FPN_detectron2.yaml"


@pytest.fixture(scope="module")
def cfg():
    cfg = get_cfg()
    cfg.merge_from_file(CONFIG)
    return cfg


@pytest.fixture(scope="module")
def detector(cfg):
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


def test_neck(detector):
    neck = detector.backbone
    assert neck.out_strides == {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
    assert set(neck.out_channels.values()) == {256}
    assert neck.size_divisibility == 32
    assert neck.top_block.p6.in_channels == 2048
    assert (neck.top_block.p6.stride, neck.top_block.p7.stride) == ((2, 2), (2, 2))
    for level in (3, 4, 5):
        for conv in (getattr(neck, f"fpn_lateral{level}"), getattr(neck, f"fpn_output{level}")):
            assert conv.norm is None
            assert not conv.bias.any()


def test_head(detector):
    head = detector.head
    for subnet in (head.cls_subnet, head.bbox_subnet):
        assert [type(layer) for layer in subnet] == [nn.Conv2d, nn.ReLU] * 4
        assert {(c.in_channels, c.out_channels, c.kernel_size) for c in subnet[::2]} == {(256, 256, (3, 3))}
    assert (head.cls_score.out_channels, head.bbox_pred.out_channels) == (720, 36)
    assert head.bbox_pred.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not head.bbox_pred.bias.any()
    torch.testing.assert_close(head.cls_score.bias, torch.full((720,), -4.59512), atol=1e-5, rtol=0)


def test_anchors(detector):
    anchors = detector.anchors
    assert anchors.offset == 0
    assert anchors.num_anchors == (9,) * 5
    assert anchors.strides == (8, 16, 32, 64, 128)
    sizes = torch.stack(anchors.cell_anchors).reshape(5, 3, 3, 2, 2).diff(dim=-2)[..., 0, :]  # level, scale, ratio
    expected = torch.tensor([[32.0 * 2**level * 2 ** (i / 3) for i in range(3)] for level in range(5)])
    torch.testing.assert_close(sizes.prod(-1).sqrt(), expected[..., None].expand(5, 3, 3))
    torch.testing.assert_close(sizes[..., 1] / sizes[..., 0], torch.tensor([0.5, 1, 2]).expand(5, 3, 3))
    assert expected.max().item() == pytest.approx(812.75, abs=0.01)


def test_assignment_and_losses(detector):
    criterion = detector.criterion
    assigner = criterion.assigner
    assert (assigner.positive_iou, assigner.negative_iou, assigner.low_quality) == (0.5, 0.4, "detectron2")
    assert (criterion.cls_loss.alpha, criterion.cls_loss.gamma) == (0.25, 2.0)
    assert criterion.box_loss.beta == 0.0
    assert criterion.box_loss_weight == 1.0
    assert (criterion.normalizer, criterion.normalizer_momentum) == ("assigned", 0.9)
    assert criterion.moving_normalizer == 100
    assert criterion.box_coder.weights == (1, 1, 1, 1)
    assert criterion.box_coder.max_log_ratio == pytest.approx(math.log(1000 / 16))


def test_post_processing(detector):
    process = detector.postprocess
    assert (process.score_threshold, process.topk_per_level) == (0.05, 1000)
    assert (process.nms_iou, process.max_detections) == (0.5, 100)


def test_pixels(cfg, detector):
    assert detector.channels == "BGR"
    assert detector.pixel_mean.flatten().tolist() == pytest.approx([103.53, 116.28, 123.675])
    assert detector.pixel_std.flatten().tolist() == [1, 1, 1]
    assert cfg.PRECISION == "fp32"


def test_training_pictures(cfg):
    resize, flip = build_transforms(cfg.INPUT.TRAIN_TRANSFORMS)
    assert isinstance(resize, ResizeShortestEdge)
    assert (resize.sizes, resize.max_size, resize.sampling) == ((640, 672, 704, 736, 768, 800), 1333, "choice")
    assert isinstance(flip, RandomFlip)
    assert flip.prob == 0.5
    assert cfg.DATASETS.TRAIN == ("coco_2017_train",)
    assert cfg.DATASETS.FILTER_EMPTY
    assert cfg.DATALOADER.ASPECT_RATIO_GROUPING


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),  # 1066.67
        ((640, 480), (1067, 800)),
        ((427, 640), (800, 1199)),  # 1199.06
        ((320, 533), (800, 1333)),  # 1332.5: a half is rounded up
        ((200, 640), (417, 1333)),  # limited by the longer side: 416.56
        ((333, 1333), (333, 1333)),
        ((1600, 1600), (800, 800)),
    ],
)
def test_test_pictures(cfg, size, expected):
    (resize,) = build_transforms(cfg.INPUT.TEST_TRANSFORMS)
    assert isinstance(resize, ResizeShortestEdge)
    assert (resize.sizes, resize.max_size) == ((800,), 1333)
    assert resized_size(size, resize.sizes[0], resize.max_size) == expected
    assert cfg.DATASETS.TEST == ("coco_2017_val",)


def test_weight_decay_and_momentum(cfg, detector):
    optimizer = build_optimizer(cfg.SOLVER, detector, plan_of(cfg.SOLVER).base_lr)
    assert type(optimizer) is torch.optim.SGD
    (group,) = optimizer.param_groups  # biases with the weights; frozen norms have no parameters
    assert {id(p) for p in group["params"]} == {id(p) for p in detector.parameters() if p.requires_grad}
    assert (group["lr"], group["momentum"], group["nesterov"]) == (0.01, 0.9, False)
    assert (group["weight_decay"], group["lr_factor"]) == (1e-4, 1)
    assert cfg.SOLVER.WEIGHT_DECAY_NORM == 0
    assert cfg.SOLVER.CLIP_GRADIENTS is None


def test_schedule(cfg):
    plan = plan_of(cfg.SOLVER)
    assert (cfg.SOLVER.IMS_PER_BATCH, plan.base_lr, plan.max_iter, plan.scale) == (16, 0.01, 90000, 1)
    factor = build_schedule(cfg.SOLVER, plan)
    expected = {0: 1e-3, 500: 0.5005, 999: 0.999001, 1000: 1, 59999: 1, 60000: 0.1, 79999: 0.1, 80000: 0.01}
    assert [factor(i) for i in expected] == pytest.approx(list(expected.values()))


def test_another_batch_scales_nothing(cfg):
    solver = cfg.SOLVER.clone()
    solver.merge_from_list(["IMS_PER_BATCH", 2])
    plan = plan_of(solver)
    assert (plan.base_lr, plan.max_iter, plan.scale) == (0.01, 90000, 1)
