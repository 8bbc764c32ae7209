import copy
import math

import pytest
import torch
from torch.nn import functional as F

from detkit.config import ConfigError, get_cfg
from detkit.modeling import build_detector
from detkit.modeling.detectors.retinanet import RetinaNet
from detkit.ops import batched_nms
from detkit.structures import Batch
from detkit.structures.boxes import clip_boxes

K = 3
NORM = ("weight", "bias", "running_mean", "running_var")
RGB_MEAN = torch.tensor([123.675, 116.28, 103.53]).reshape(3, 1, 1)


def make_detector(cfg, seed=0, num_classes=K):
    torch.manual_seed(seed)
    return build_detector(cfg, num_classes)


def spread(detector):
    """Make a fresh detector's outputs differ from anchor to anchor and its scores reach 1."""
    for layer in (detector.head.cls_score, detector.head.bbox_pred):
        torch.nn.init.normal_(layer.weight, std=0.6)
    return detector


def detectron2_keys(blocks=(3, 4, 6, 3)):
    """The names of detectron2's RetinaNet R50, as its weights files have them."""
    keys = {"backbone.bottom_up.stem.conv1.weight"} | {f"backbone.bottom_up.stem.conv1.norm.{n}" for n in NORM}
    for stage, count in zip((2, 3, 4, 5), blocks, strict=True):
        for block in range(count):
            for conv in ("conv1", "conv2", "conv3") + (("shortcut",) if block == 0 else ()):
                prefix = f"backbone.bottom_up.res{stage}.{block}.{conv}"
                keys |= {f"{prefix}.weight"} | {f"{prefix}.norm.{n}" for n in NORM}
    layers = [f"backbone.fpn_{kind}{level}" for kind in ("lateral", "output") for level in (3, 4, 5)]
    layers += ["backbone.top_block.p6", "backbone.top_block.p7", "head.cls_score", "head.bbox_pred"]
    layers += [f"head.{subnet}.{i}" for subnet in ("cls_subnet", "bbox_subnet") for i in (0, 2, 4, 6)]
    return keys | {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}


SHAPES = {
    "backbone.bottom_up.stem.conv1.weight": (64, 3, 7, 7),
    "backbone.bottom_up.res2.0.shortcut.weight": (256, 64, 1, 1),
    "backbone.bottom_up.res2.0.conv1.weight": (64, 64, 1, 1),
    "backbone.bottom_up.res2.0.conv2.weight": (64, 64, 3, 3),
    "backbone.bottom_up.res5.2.conv3.weight": (2048, 512, 1, 1),
    "backbone.bottom_up.res5.2.conv3.norm.running_var": (2048,),
    "backbone.fpn_lateral3.weight": (256, 512, 1, 1),
    "backbone.fpn_output5.weight": (256, 256, 3, 3),
    "backbone.top_block.p6.weight": (256, 2048, 3, 3),
    "backbone.top_block.p7.weight": (256, 256, 3, 3),
    "head.cls_subnet.6.weight": (256, 256, 3, 3),
    "head.cls_score.weight": (720, 256, 3, 3),
    "head.bbox_pred.weight": (36, 256, 3, 3),
}


def test_the_default_r50_has_the_names_and_shapes_of_detectron2():
    with torch.device("meta"):
        state = build_detector(get_cfg(), 80).state_dict()
    assert set(state) == detectron2_keys()
    assert {name: tuple(state[name].shape) for name in SHAPES} == SHAPES


def test_class_layers_are_those_whose_shape_depends_on_the_classes():
    with torch.device("meta"):
        detector, other = build_detector(get_cfg(), 80), build_detector(get_cfg(), 3).state_dict()
    changed = {name for name, value in detector.state_dict().items() if other[name].shape != value.shape}
    assert changed == {f"{layer}.{part}" for layer in detector.class_layers for part in ("weight", "bias")}


def test_depths_and_norms_change_only_the_backbones_names(cfg):
    with torch.device("meta"):
        cfg = get_cfg()
        cfg.merge_from_list(["MODEL.BACKBONE.ResNet.DEPTH", 101])
        assert set(build_detector(cfg, 80).state_dict()) == detectron2_keys((3, 4, 23, 3))


def reference_forward(detector, batch):
    """The network of sections 3 and 4 from the state dict alone, in float64, one picture of the batch at a time."""
    w = {k: v.double() for k, v in detector.state_dict().items()}

    def conv(x, name, stride=1):
        weight = w[f"{name}.weight"]
        y = F.conv2d(x, weight, w.get(f"{name}.bias"), stride=stride, padding=weight.shape[-1] // 2)
        if f"{name}.norm.running_var" not in w:
            return y
        norm = {n: w[f"{name}.norm.{n}"].reshape(-1, 1, 1) for n in NORM}
        return (y - norm["running_mean"]) / (norm["running_var"] + 1e-5).sqrt() * norm["weight"] + norm["bias"]

    def block(x, name, stride):
        shortcut = conv(x, f"{name}.shortcut", stride) if f"{name}.shortcut.weight" in w else x
        y = conv(x, f"{name}.conv1", stride).relu()
        y = conv(conv(y, f"{name}.conv2").relu(), f"{name}.conv3")
        return (y + shortcut).relu()

    def network(x):
        x = F.max_pool2d(conv(x, "backbone.bottom_up.stem.conv1", 2).relu(), 3, 2, 1)
        features = {}
        for stage, count in zip((2, 3, 4, 5), (3, 4, 6, 3), strict=True):
            for i in range(count):
                x = block(x, f"backbone.bottom_up.res{stage}.{i}", 2 if i == 0 and stage > 2 else 1)
            features[stage] = x
        merged, pyramid = None, []
        for level in (5, 4, 3):
            lateral = conv(features[level], f"backbone.fpn_lateral{level}")
            merged = lateral if merged is None else lateral + merged.repeat_interleave(2, 2).repeat_interleave(2, 3)
            pyramid.insert(0, conv(merged, f"backbone.fpn_output{level}"))
        p6 = conv(features[5], "backbone.top_block.p6", 2)
        return [*pyramid, p6, conv(p6.relu(), "backbone.top_block.p7", 2)]

    def subnet(x, name, last, width):
        for i in (0, 2, 4, 6):
            x = conv(x, f"head.{name}.{i}").relu()
        x = conv(x, f"head.{last}")
        n, _, height, width_of_map = x.shape
        return x.reshape(n, -1, width, height, width_of_map).permute(0, 3, 4, 1, 2).reshape(n, -1, width)

    height, width = (math.ceil(side / 32) * 32 for side in batch.images.shape[-2:])
    x = torch.zeros(len(batch), 3, height, width, dtype=torch.float64)
    for n, (h, w_) in enumerate(batch.image_sizes.tolist()):
        x[n, :, :h, :w_] = (batch.images[n, :, :h, :w_].double() - RGB_MEAN.double()).flip(0)
    pyramid = network(x)
    return [
        [subnet(p, name, last, values) for p in pyramid]
        for name, last, values in (("cls_subnet", "cls_score", K), ("bbox_subnet", "bbox_pred", 4))
    ]


def test_raw_outputs_are_those_of_the_network_written_out_from_its_state_dict(make_batch):
    # detectron2's settings (frozen norms, stride in 1x1, BGR) with narrow stages.
    cfg = get_cfg()
    for key, value in {"STEM_CHANNELS": 8, "RES2_CHANNELS": 16, "WIDTH_PER_GROUP": 4}.items():
        cfg.merge_from_list([f"MODEL.BACKBONE.ResNet.{key}", value])
    cfg.merge_from_list(["MODEL.NECK.FPN.OUT_CHANNELS", 8])
    detector = make_detector(cfg).double()
    generator = torch.Generator().manual_seed(1)
    for name, value in detector.state_dict().items():
        if "norm" in name or name.endswith("bias"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5 * ("var" in name or "weight" in name))
        elif "head" in name:
            value.mul_(20)
    detector.preprocess = lambda *args: type(detector).preprocess(detector, *args).double()
    batch = make_batch((50, 70), (64, 40))
    outputs = detector.raw_outputs(batch.images, batch.image_sizes)
    for actual, expected in zip((outputs.logits, outputs.deltas), reference_forward(detector, batch), strict=True):
        assert len(actual) == len(expected) == 5
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5 * b.abs().max().item(), rtol=1e-5)


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_the_input_is_normalised_in_the_order_of_channels_then_padded_with_zeros(cfg, make_batch, channels):
    mean, std = (10.0, 20.0, 30.0), (1.0, 2.0, 4.0)
    cfg.merge_from_list(["INPUT.CHANNELS", channels, "MODEL.PIXEL_MEAN", mean, "MODEL.PIXEL_STD", std])
    batch = make_batch((33, 40), (20, 50))
    batch.images[0, :, :, 40:] = 255  # what lies in the padding must not be seen
    x = make_detector(cfg).preprocess(batch.images, batch.image_sizes)
    assert x.shape == (2, 3, 64, 64)
    assert x.dtype == torch.float32
    for n, (height, width) in enumerate(batch.image_sizes.tolist()):
        picture = batch.images[n, :, :height, :width].float()
        for c in range(3):
            expected = (picture["RGB".index(channels[c])] - mean[c]) / std[c]
            torch.testing.assert_close(x[n, c, :height, :width], expected)
        assert not x[n, :, height:].any()
        assert not x[n, :, :, width:].any()


@pytest.mark.parametrize("std", [(1.0, 0.0, 1.0), (-1.0, 1.0, 1.0)])
def test_a_deviation_that_is_not_positive_is_refused(cfg, std):
    with pytest.raises(ConfigError, match=r"MODEL.PIXEL_STD must be \[float \(x > 0\), "):
        cfg.merge_from_list(["MODEL.PIXEL_STD", std])
    parts = dict.fromkeys(("backbone", "head", "anchors", "criterion", "postprocess"), torch.nn.Identity())
    with pytest.raises(ValueError, match=rf"pixel_std \({std[0]}, {std[1]}, .* must be positive"):
        RetinaNet(**parts, pixel_mean=(0.0,) * 3, pixel_std=std, channels="BGR")


def test_the_default_input_is_bgr_less_its_mean(make_batch):
    with torch.device("meta"):
        detector = build_detector(get_cfg(), K)
    mean = torch.tensor([103.530, 116.280, 123.675]).reshape(3, 1, 1)
    detector.pixel_mean, detector.pixel_std = torch.tensor(get_cfg().MODEL.PIXEL_MEAN).reshape(3, 1, 1), torch.ones(1)
    batch = make_batch((32, 32))
    expected = batch.images.float().flip(1) - mean
    torch.testing.assert_close(detector.preprocess(batch.images, batch.image_sizes), expected)


def test_the_input_is_float32_under_autocast(cfg, make_batch):
    detector, batch = make_detector(cfg), make_batch((32, 32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = detector.preprocess(batch.images, batch.image_sizes)
    assert torch.equal(x, detector.preprocess(batch.images, batch.image_sizes))


def test_mean_and_deviation_are_not_in_the_state_dict(cfg):
    assert not [name for name in make_detector(cfg).state_dict() if "pixel" in name or "anchor" in name]


@pytest.mark.parametrize("size", [(1, 1), (7, 130), (32, 32), (65, 33), (128, 200)])
def test_there_is_a_logit_vector_and_a_delta_for_every_anchor_at_any_size(cfg, make_batch, size):
    detector, batch = make_detector(cfg), make_batch(size)
    outputs = detector.raw_outputs(batch.images, batch.image_sizes)
    padded = [math.ceil(side / 32) * 32 for side in size]
    cells = [math.ceil(padded[0] / stride) * math.ceil(padded[1] / stride) for stride in (8, 16, 32, 64, 128)]
    assert [x.shape for x in outputs.logits] == [(1, 9 * n, K) for n in cells]
    assert [x.shape for x in outputs.deltas] == [(1, 9 * n, 4) for n in cells]
    assert [x.shape for x in outputs.anchors] == [(9 * n, 4) for n in cells]


def test_scores_start_at_the_prior(cfg, make_batch):
    batch = make_batch((64, 96))
    logits, _, _ = make_detector(cfg).raw_outputs(batch.images, batch.image_sizes)
    scores = torch.cat(logits, 1).sigmoid()
    assert scores.mean().item() == pytest.approx(0.01, rel=0.1)
    assert scores.max() < 0.05


def test_without_a_prior_scores_start_at_a_half(cfg, make_batch):
    cfg.merge_from_list(["MODEL.PRIOR_PROB", None])
    batch = make_batch((64, 96))
    logits, _, _ = make_detector(cfg).raw_outputs(batch.images, batch.image_sizes)
    assert torch.cat(logits, 1).sigmoid().mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("boxes_per_image", [0, 3])
def test_training_gives_finite_losses_that_reach_every_parameter(cfg, make_batch, boxes_per_image):
    detector = make_detector(cfg).train()
    losses = detector(make_batch((64, 90), (40, 100), boxes_per_image=boxes_per_image))
    counts = {f"metric_num_{name}" for name in ("foreground", "selected", "selected_foreground")}
    assert set(losses) == {"loss_cls", "loss_box"} | counts
    assert all(value.shape == () and torch.isfinite(value) for value in losses.values())
    assert (losses["metric_num_foreground"] > 0) == (boxes_per_image > 0)
    (losses["loss_cls"] + losses["loss_box"]).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_some_images_may_have_no_ground_truth(cfg, make_batch):
    batch = make_batch((64, 64), (64, 64))
    batch.gt_classes_NG[0] = -1
    batch.gt_boxes_NG4[0] = 0
    losses = make_detector(cfg).train()(batch)
    assert losses["metric_num_foreground"] > 0
    assert torch.isfinite(losses["loss_cls"] + losses["loss_box"])


def test_frozen_parameters_get_no_gradient_and_the_others_do(make_batch, cfg):
    cfg.merge_from_list(["MODEL.BACKBONE.ResNet.NORM", "FrozenBN", "MODEL.BACKBONE.ResNet.FREEZE_AT", 2])
    detector = make_detector(cfg).train()
    losses = detector(make_batch((64, 64)))
    (losses["loss_cls"] + losses["loss_box"]).backward()
    frozen = {name for name, p in detector.named_parameters() if p.grad is None}
    assert frozen == {
        name
        for name, _ in detector.named_parameters()
        if name.startswith(("backbone.bottom_up.stem", "backbone.bottom_up.res2"))
    }


def test_a_few_steps_lower_the_loss_on_a_batch(cfg, make_batch):
    detector, batch = make_detector(cfg).train(), make_batch((64, 64), (64, 64))
    optimizer = torch.optim.Adam(detector.parameters(), lr=5e-3)
    history = []
    for _ in range(15):
        losses = detector(batch)
        total = losses["loss_cls"] + losses["loss_box"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(total.item())
    assert history[-1] < 0.5 * history[0]


def single(batch, n):
    """Image n of a batch as a batch of its own, in the same padding."""
    return Batch(**{k: v[n : n + 1] for k, v in vars(batch).items()})


def test_detections_of_a_batch_are_those_of_its_images(cfg, make_batch):
    detector = spread(make_detector(cfg)).eval()
    batch = make_batch((60, 90), (64, 40), (33, 96))
    together = detector(batch)
    assert all(len(detections) > 0 for detections in together)
    for n, detections in enumerate(together):
        (alone,) = detector(single(batch, n))
        torch.testing.assert_close(vars(detections), vars(alone), atol=1e-3, rtol=1e-4)


def test_detections_are_the_raw_outputs_decoded_suppressed_and_scaled(cfg, make_batch):
    detector = spread(make_detector(cfg)).eval()
    batch = make_batch((64, 96))
    batch.original_sizes = torch.tensor([[128, 288]])
    logits, deltas, anchors = detector.raw_outputs(batch.images, batch.image_sizes)
    scores = torch.cat(logits, 1)[0].sigmoid()
    best = scores.flatten().sort(descending=True)
    passed = int((best.values > 0.05).sum())
    assert 100 < passed < 1000  # so that no level has more than its limit
    boxes = detector.postprocess.box_coder.decode(torch.cat(deltas, 1)[0], torch.cat(anchors))
    rows, classes = best.indices[:passed] // K, best.indices[:passed] % K
    kept = batched_nms(boxes[rows], best.values[:passed], classes, 0.5, max_keep=100)
    expected = clip_boxes(boxes[rows][kept] * torch.tensor([3.0, 2, 3, 2]), torch.tensor([128, 288]))
    expected = expected[(expected[:, 2:] > expected[:, :2]).all(1)]
    (detections,) = detector(batch)
    torch.testing.assert_close(detections.boxes, expected)


def test_evaluation_records_no_gradient_and_training_returns_losses_again(cfg, make_batch):
    detector, batch = spread(make_detector(cfg)), make_batch((64, 64))
    recorded = []
    detector.head.register_forward_hook(lambda module, inputs, outputs: recorded.append(outputs[0][0].requires_grad))
    detections = detector.eval()(batch)[0]
    assert recorded == [False]
    assert len(detections) > 0
    assert detector.train()(batch)["loss_cls"].requires_grad


def test_channels_last_computes_the_same(cfg, make_batch):
    detector, batch = make_detector(cfg), make_batch((64, 90))
    other = copy.deepcopy(detector).to(memory_format=torch.channels_last)
    for a, b in zip(
        detector.raw_outputs(batch.images, batch.image_sizes),
        other.raw_outputs(batch.images, batch.image_sizes),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_bfloat16_autocast_trains_and_detects(cfg, make_batch):
    detector, batch = spread(make_detector(cfg)), make_batch((64, 64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = detector.train()(batch)
        detections = detector.eval()(batch)[0]
    assert losses["loss_cls"].dtype == losses["loss_box"].dtype == torch.float32
    (losses["loss_cls"] + losses["loss_box"]).backward()
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters())
    assert detections.boxes.dtype == detections.scores.dtype == torch.float32


def test_assign_is_what_the_loss_counts(cfg, make_batch):
    detector, batch = make_detector(cfg).train(), make_batch((70, 90), (33, 128))
    anchors, labels, matched = detector.assign(batch)
    assert torch.equal(anchors, torch.cat(detector.raw_outputs(batch.images, batch.image_sizes).anchors))
    assert labels.shape == matched.shape == (2, len(anchors))
    assert ((labels >= 0) & (labels < K)).sum() == detector(batch)["metric_num_foreground"]


def test_two_trainings_from_a_seed_are_identical(cfg, make_batch):
    batch = make_batch((64, 64))
    losses = [make_detector(cfg, seed=5).train()(batch) for _ in range(2)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("norm", ["BN", "GN"])
def test_norms_may_train_everywhere(cfg, make_batch, norm):
    cfg.merge_from_list(["MODEL.BACKBONE.ResNet.NORM", norm, "MODEL.NECK.FPN.NORM", norm])
    cfg.merge_from_list(["MODEL.HEAD.RetinaNetHead.NORM", "GN"])
    losses = make_detector(cfg).train()(make_batch((64, 64), (64, 64)))
    assert torch.isfinite(losses["loss_cls"] + losses["loss_box"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["MODEL.NECK.FPN.SIZE_DIVISIBILITY", 128],
        ["MODEL.ANCHORS.STEPS", "input"],
        ["MODEL.ANCHORS.ROUNDING", "detectron"],
    ],
)
def test_the_anchors_that_are_assigned_are_those_of_the_outputs(overrides):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.BACKBONE.ResNet.DEPTH", 18, "MODEL.NECK.FPN.OUT_CHANNELS", 8, *overrides])
    detector = make_detector(cfg)
    batch = Batch.from_images([torch.zeros(3, 70, 100, dtype=torch.uint8)])
    anchors = torch.cat(detector.raw_outputs(batch.images, batch.image_sizes).anchors)
    assert torch.equal(detector.assign(batch)[0], anchors)
