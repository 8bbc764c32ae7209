import math

import pytest
import torch

from detkit.modeling import build, build_detector
from detkit.modeling.assigners import IoUAssigner
from detkit.modeling.losses import GIoU, SmoothL1
from detkit.modeling.samplers import AllAnchors
from detkit.registry import ASSIGNERS, BOX_LOSSES, CLS_LOSSES, DATASETS, SAMPLERS


@pytest.fixture
def vehicles():
    """A data set of three classes whose pictures do not exist."""

    class Vehicles:
        def __init__(self, spec):
            self.spec = spec

        def classes(self):
            return ("car", "bus", self.spec)

    DATASETS.register(Vehicles, name="vehicles")
    yield
    DATASETS.unregister("vehicles")


@pytest.mark.usefixtures("vehicles")
def test_the_number_of_classes_comes_from_the_first_training_set(cfg):
    cfg.merge_from_list(["DATASETS.TRAIN", ("vehicles:tram", "coco_2017_train")])
    detector = build_detector(cfg)
    assert detector.criterion.num_classes == 3
    assert detector.head.cls_score.out_channels == 9 * 3


def test_the_number_of_classes_may_be_given_without_a_data_set(cfg):
    assert build_detector(cfg, 7).head.cls_score.out_channels == 9 * 7


def test_without_data_set_and_number_the_error_names_the_key(cfg):
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN is empty"):
        build_detector(cfg)


def test_a_detector_needs_a_class(cfg):
    with pytest.raises(ValueError, match="at least one class, not 0"):
        build_detector(cfg, 0)


def test_options_reach_their_components(cfg):
    cfg.merge_from_list(
        [
            *("MODEL.ASSIGNER.IoUAssigner.POSITIVE_IOU", 0.6, "MODEL.ASSIGNER.IoUAssigner.LOW_QUALITY", "off"),
            *("MODEL.CLS_LOSS.SigmoidFocalLoss.ALPHA", None, "MODEL.CLS_LOSS.SigmoidFocalLoss.GAMMA", 0),
            *("MODEL.BOX_LOSS.NAME", "GIoU", "MODEL.BOX_CODER.WEIGHTS", (10, 10, 5, 5)),
            *("MODEL.CRITERION.NORMALIZER", "selected", "MODEL.CRITERION.BOX_LOSS_ON", "selected"),
            *("MODEL.CRITERION.BOX_LOSS_WEIGHT", 2, "MODEL.CRITERION.NORMALIZER_MOMENTUM", 0.9),
            *("MODEL.POSTPROCESS.MAX_DETECTIONS", 7, "MODEL.POSTPROCESS.NMS_IOU", 0.6),
            *("MODEL.POSTPROCESS.SCORE_THRESHOLD", 0.2, "MODEL.POSTPROCESS.TOPK_PER_LEVEL", 9),
            *("MODEL.ANCHORS.OFFSET", 0.5, "MODEL.ANCHORS.SCALES_PER_OCTAVE", 1),
        ]
    )
    detector = build_detector(cfg, 2)
    criterion, process = detector.criterion, detector.postprocess
    assert (criterion.assigner.positive_iou, criterion.assigner.low_quality) == (0.6, "off")
    assert (criterion.cls_loss.alpha, criterion.cls_loss.gamma) == (None, 0)
    assert isinstance(criterion.box_loss, GIoU)
    assert criterion.box_coder is process.box_coder
    assert criterion.box_coder.weights == (10, 10, 5, 5)
    assert (criterion.normalizer, criterion.box_loss_on, criterion.box_loss_weight) == ("selected", "selected", 2)
    assert criterion.moving_normalizer == 100
    assert (process.max_detections, process.nms_iou, process.score_threshold, process.topk_per_level) == (
        7,
        0.6,
        0.2,
        9,
    )
    assert (detector.anchors.offset, detector.anchors.num_anchors) == (0.5, (3,) * 5)


def test_the_defaults_are_the_papers(cfg):
    detector = build_detector(cfg, 2)
    criterion = detector.criterion
    assert isinstance(criterion.assigner, IoUAssigner)
    assert isinstance(criterion.sampler, AllAnchors)
    assert isinstance(criterion.box_loss, SmoothL1)
    assert (criterion.assigner.positive_iou, criterion.assigner.negative_iou) == (0.5, 0.4)
    assert criterion.assigner.low_quality == "detectron2"
    assert (criterion.cls_loss.alpha, criterion.cls_loss.gamma) == (0.25, 2.0)
    assert criterion.box_loss.beta == 0.11
    assert (criterion.normalizer, criterion.normalizer_momentum) == ("assigned", 0.0)
    assert criterion.box_coder.weights == (1, 1, 1, 1)
    assert criterion.box_coder.max_log_ratio == pytest.approx(math.log(1000 / 16))
    assert torch.allclose(detector.head.cls_score.bias, torch.tensor(-math.log(99)))
    assert (detector.anchors.num_anchors, detector.anchors.offset) == ((9,) * 5, 0.0)
    assert detector.anchors.strides == (8, 16, 32, 64, 128)


def test_levels_of_anchors_and_neck_must_agree(cfg):
    cfg.merge_from_list(["MODEL.ANCHORS.SIZES", (32, 64)])
    with pytest.raises(ValueError, match=r"ANCHORS.SIZES \(32.*, 64.*\) has 2 levels, the neck 5"):
        build_detector(cfg, 2)


def test_a_shared_head_needs_features_of_one_width(cfg):
    class Neck:
        out_channels = {"p3": 8, "p4": 16}

    with pytest.raises(ValueError, match="one width.*'p4': 16"):
        build.build_head(cfg.MODEL.HEAD, Neck(), (9, 9), CLS_LOSSES.build(cfg.MODEL.CLS_LOSS), 2, 0.01)


def test_a_shared_head_needs_equally_many_anchors_on_every_level(cfg):
    class Neck:
        out_channels = {"p3": 8, "p4": 8}

    with pytest.raises(ValueError, match=r"equally many anchors on each; the levels have \(9, 6\)"):
        build.build_head(cfg.MODEL.HEAD, Neck(), (9, 6), CLS_LOSSES.build(cfg.MODEL.CLS_LOSS), 2, 0.01)


def test_parts_build_from_a_node_anywhere(cfg):
    node = cfg.MODEL.clone()
    node.merge_from_list(["ASSIGNER.IoUAssigner.POSITIVE_IOU", 0.7, "CRITERION.NORMALIZER", "selected_positives"])
    criterion = build.build_criterion(
        node,
        4,
        cls_loss=CLS_LOSSES.build(node.CLS_LOSS),
        box_loss=BOX_LOSSES.build(node.BOX_LOSS),
        box_coder=build.build_box_coder(node.BOX_CODER),
    )
    assert criterion.assigner.positive_iou == 0.7
    assert criterion.normalizer == "selected_positives"
    assert cfg.MODEL.ASSIGNER.IoUAssigner.POSITIVE_IOU == 0.5


def test_components_of_a_project_are_offered_the_number_of_classes(cfg):
    class Nothing:
        def __init__(self, num_classes):
            self.num_classes = num_classes

        def __call__(self, labels_NR, **offered):
            return torch.zeros_like(labels_NR, dtype=torch.bool)

    for socket in (SAMPLERS, ASSIGNERS):
        socket.register(Nothing)
    try:
        cfg.merge_from_list(["MODEL.SAMPLER.NAME", "Nothing", "MODEL.ASSIGNER.NAME", "Nothing"])
        criterion = build_detector(cfg, 6).criterion
    finally:
        for socket in (SAMPLERS, ASSIGNERS):
            socket.unregister("Nothing")
    assert criterion.sampler.num_classes == criterion.assigner.num_classes == 6
