"""Loading weights: what fits is loaded, what does not is said, and a wrong file changes nothing."""

import contextlib

import pytest
import torch
from torch import nn

from detkit.checkpoint import CheckpointError, about_weights, apply_weights, load_file, load_weights
from detkit.checkpoint.convert import convert_weights, describe
from detkit.config import get_cfg
from detkit.modeling import build_detector
from tests.checkpoint import foreign


class Detector(nn.Module):
    class_layers = ("head.cls_score",)

    def __init__(self, classes=3, width=4):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = nn.Sequential(nn.Conv2d(3, width, 1), nn.Conv2d(width, width, 1))
        self.head = nn.Module()
        self.head.cls_score = nn.Conv2d(width, classes, 1)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_whole_detector(tmp_path, wrapped):
    source, target = Detector(), Detector()
    content = {"model": source.state_dict(), "class_names": ["a", "b", "c"]} if wrapped else source.state_dict()
    torch.save(content, tmp_path / "w.pth")
    report = load_weights(target, tmp_path / "w.pth")
    assert equal(source, target)
    assert (len(report.loaded), report.skipped, report.missing) == (6, {}, {})
    assert report.class_names == (("a", "b", "c") if wrapped else ())


@pytest.mark.parametrize("prefix", ["", "backbone.bottom_up."])
def test_a_backbone_alone(tmp_path, prefix):
    source, target = Detector(), Detector()
    state = {prefix + k: v for k, v in source.backbone.bottom_up.state_dict().items()}
    torch.save({**state, prefix + "fc.weight": torch.zeros(2)}, tmp_path / "w.pth")
    report = load_weights(target, tmp_path / "w.pth")
    assert torch.equal(source.backbone.bottom_up[0].weight, target.backbone.bottom_up[0].weight)
    assert report.skipped == {prefix + "fc.weight": "no such name in the detector"}
    assert set(report.missing) == {"head.cls_score.weight", "head.cls_score.bias"}


def test_another_number_of_classes_skips_the_class_layer_only(tmp_path):
    torch.save(Detector(classes=80).state_dict(), tmp_path / "w.pth")
    report = load_weights(Detector(classes=6), tmp_path / "w.pth")
    assert set(report.skipped) == {"head.cls_score.weight", "head.cls_score.bias"}
    assert "[80] -> [6]" in report.skipped["head.cls_score.bias"]
    assert len(report.loaded) == 4


def test_any_other_shape_is_an_error_and_changes_nothing(tmp_path):
    torch.save(Detector(width=8).state_dict(), tmp_path / "w.pth")
    target, before = Detector(), Detector()
    before.load_state_dict(target.state_dict())
    with pytest.raises(CheckpointError, match=r"w.pth: 'backbone.bottom_up.0.weight' has shape \[8, 3, 1, 1\].*\[4, 3"):
        load_weights(target, tmp_path / "w.pth")
    assert equal(before, target)


def test_a_stranger_is_an_error(tmp_path):
    torch.save({"layer1.weight": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"fills only 0 of the 4 tensors of the backbone"):
        load_weights(Detector(), tmp_path / "w.pth")
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match=r"list.pth: holds a list"):
        load_weights(Detector(), tmp_path / "list.pth")
    torch.save({"a": 1}, tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match=r"none.pth: holds no tensors"):
        load_weights(Detector(), tmp_path / "none.pth")


def test_a_key_map_renames_and_skips(tmp_path):
    source, target = Detector(), Detector()
    torch.save({f"net.{k}": v for k, v in source.state_dict().items()}, tmp_path / "w.pth")
    mapping = lambda name: None if "cls_score" in name else name.removeprefix("net.")  # noqa: E731
    report = load_weights(target, tmp_path / "w.pth", key_map=mapping)
    assert len(report.loaded) == 4
    assert set(report.skipped.values()) == {"left out by the key map"}


def test_other_classes_of_the_same_number_skip_the_class_layer(tmp_path):
    torch.save({"model": Detector().state_dict(), "class_names": ["a", "b", "c"]}, tmp_path / "w.pth")
    assert load_weights(Detector(), tmp_path / "w.pth", class_names=("a", "b", "c")).skipped == {}
    report = load_weights(Detector(), tmp_path / "w.pth", class_names=("a", "c", "b"))
    assert set(report.skipped) == {"head.cls_score.weight", "head.cls_score.bias"}
    assert report.skipped["head.cls_score.bias"].startswith("other classes: a, b, c")


def test_the_real_detector_changes_its_number_of_classes(tmp_path):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.BACKBONE.ResNet.DEPTH", 18, "MODEL.BACKBONE.ResNet.RES2_CHANNELS", 8])
    torch.save(build_detector(cfg, 5).state_dict(), tmp_path / "w.pth")
    report = load_weights(build_detector(cfg, 3), tmp_path / "w.pth")
    assert set(report.skipped) == {"head.cls_score.weight", "head.cls_score.bias"}


# What is said


def torchvision_file(path, **options):
    torch.save(foreign.torchvision_resnet(foreign.detector(**options)), path)
    return path


def test_the_report_has_a_row_for_every_tensor_of_the_file_and_of_the_detector(tmp_path):
    source, target = foreign.detector(classes=80), foreign.detector(classes=6)
    state = {**source.state_dict(), "pixel_mean": torch.zeros(3), "strange": torch.zeros(1)}
    del state["head.bbox_pred.bias"]
    torch.save({"model": state}, tmp_path / "w.pth")
    report = load_weights(target, tmp_path / "w.pth")
    assert {row.source for row in report.rows if row.source} == set(state)
    assert {row.target for row in report.rows if row.target} == set(target.state_dict())
    why = {row.source or row.target: (row.status, row.why) for row in report.rows}
    assert why["pixel_mean"] == ("skipped", "a constant of the config")
    assert why["strange"] == ("skipped", "no such name in the detector")
    assert why["head.bbox_pred.bias"] == ("missing", "not in the file")
    assert why["head.cls_score.bias"] == ("skipped", "another number of classes: [720] -> [54]")
    assert set(report.kept) == {"head.bbox_pred.bias", "head.cls_score.weight", "head.cls_score.bias"}
    summary = str(report)
    assert "\n" not in summary
    assert "head.cls_score: 80 -> 6 classes, re-initialised with the prior" in summary
    assert "a detector under detectron2's names, which are detkit's" in summary
    table = report.table()
    assert len(table.splitlines()) == len(report.rows) + 2
    assert "not in the file" in table


def test_class_layers_start_anew_from_the_prior(tmp_path):
    torch.save(foreign.detector(classes=80).state_dict(), tmp_path / "w.pth")
    target = foreign.detector(classes=6)
    before = target.head.cls_score.weight.clone()
    load_weights(target, tmp_path / "w.pth")
    weight, bias = target.head.cls_score.weight, target.head.cls_score.bias
    assert torch.allclose(bias, torch.full_like(bias, -4.59512))
    assert not torch.equal(before, weight)
    assert 0.008 < float(weight.detach().std()) < 0.012


@pytest.mark.parametrize(
    ("depths", "message"),
    [
        ((101, 50), r"only one of them has block res4.10.*looks like ResNet-101.*backbone is ResNet-50"),
        ((34, 50), r"has shape.*looks like ResNet-34.*backbone is ResNet-50"),
        ((18, 34), r"only one of them has block res2.2.*looks like ResNet-18.*backbone is ResNet-34"),
    ],
)
def test_a_file_of_another_depth_is_an_error_that_says_which(tmp_path, depths, message):
    plain = ["MODEL.NECK.FPN.OUT_CHANNELS", 32]
    source, target = (detector_of("MODEL.BACKBONE.ResNet.DEPTH", depth, *plain) for depth in depths)
    torch.save(source.backbone.bottom_up.state_dict(), tmp_path / "w.pth")
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_weights(target, tmp_path / "w.pth")
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


def detector_of(*overrides):
    cfg = get_cfg()
    cfg.merge_from_list(list(overrides))
    return build_detector(cfg, 3)


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("bbox_head.retina_cls.weight", "mmdetection"),
        ("model.0.conv.weight", "ultralytics"),
        ("transformer.encoder.layers.0.linear1.weight", "DETR"),
        ("blocks.0.attn.qkv.weight", "vision transformer"),
        ("rpn.head.conv.weight", "Faster R-CNN"),
        ("features.0.weight", "VGG"),
    ],
)
def test_a_stranger_is_named(tmp_path, name, owner):
    torch.save({name: torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=rf"fills only 0 of the .*This looks like .*{owner}"):
        load_weights(foreign.detector(), tmp_path / "w.pth")


def test_what_the_weights_were_trained_with_is_compared(tmp_path):
    path = torchvision_file(tmp_path / "w.pth")
    notes = load_weights(foreign.detector(), path).notes
    assert any("RGB pictures, and INPUT.CHANNELS is BGR" in note for note in notes)
    assert any("MODEL.PIXEL_MEAN [123.675, 116.28, 103.53]" in note for note in notes)
    assert any("STRIDE_IN_1X1 should be false" in note for note in notes)
    right = foreign.detector(
        *("INPUT.CHANNELS", "RGB", "MODEL.BACKBONE.ResNet.STRIDE_IN_1X1", False),
        *("MODEL.PIXEL_MEAN", (123.675, 116.28, 103.53), "MODEL.PIXEL_STD", (58.395, 57.12, 57.375)),
    )
    assert load_weights(right, path).notes == []


def test_other_anchors_and_constants_are_said(tmp_path):
    source = foreign.as_affine(foreign.detector())
    path = foreign.write_pickle(tmp_path / "d1.pkl", foreign.caffe2_retinanet(source))
    notes = load_weights(foreign.detector(), path).notes
    assert any("trained on other anchors: on the finest level their sides differ by up to" in note for note in notes)
    assert "configs/presets/detectron.yaml" in notes[-1]
    old = {**source.state_dict(), "pixel_mean": torch.tensor([102.9801, 115.9465, 122.7717]).reshape(1, 3, 1, 1)}
    torch.save({"model": old}, tmp_path / "d2.pth")
    assert (
        "MODEL.PIXEL_MEAN [102.9801, 115.9465, 122.7717]"
        in load_weights(foreign.detector(), tmp_path / "d2.pth").notes[0]
    )
    few = foreign.detector("MODEL.ANCHORS.SCALES_PER_OCTAVE", 3)
    old = {**few.state_dict(), "anchor_generator.cell_anchors.0": torch.zeros(3, 4)}
    torch.save({"model": old}, tmp_path / "d3.pth")
    assert "for 3 anchors in a cell, and the detector has 9" in load_weights(few, tmp_path / "d3.pth").notes[0]


def test_norms_without_statistics_are_taken_as_detectron2_takes_them(tmp_path):
    source, target = foreign.detector(), foreign.detector(seed=5)
    state = {name: tensor for name, tensor in source.state_dict().items() if "running" not in name}
    torch.save({"model": state}, tmp_path / "w.pth")
    report = load_weights(target, tmp_path / "w.pth")
    assert report.missing == {}
    norm = target.backbone.bottom_up.stem.conv1.norm
    assert torch.equal(norm.running_mean, torch.zeros(8))
    assert torch.equal(norm.running_var, torch.ones(8))


def test_two_names_for_one_place_are_an_error(tmp_path):
    state = foreign.torchvision_resnet(foreign.detector())
    torch.save({**state, "backbone.bottom_up.stem.conv1.weight": state["conv1.weight"]}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="are both 'backbone.bottom_up.stem.conv1.weight'"):
        load_weights(foreign.detector(), tmp_path / "w.pth")


# Contents that are not what they should be


@pytest.mark.parametrize("names", [torch.zeros(3), 7, {"a": 1}, ["a", 1], "abc", ["a"] * 100_001])
def test_class_names_of_another_kind(tmp_path, names):
    torch.save({"model": Detector().state_dict(), "class_names": names}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"w.pth: (its class_names are no list of names|names 100001 classes)"):
        load_weights(Detector(), tmp_path / "w.pth")


def test_names_of_a_file_cannot_break_lines_nor_widen_the_table(tmp_path):
    odd = {"a\nb\x1b[31m": torch.zeros(1), "\ud800": torch.zeros(1), "x" * 1_000_000: torch.zeros(1)}
    torch.save({**Detector().state_dict(), **odd}, tmp_path / "w.pth")
    report = load_weights(Detector(), tmp_path / "w.pth")
    assert set(report.skipped) == set(odd)
    assert len(report.table()) < 10_000
    assert len(str(report)) < 1000
    assert "\x1b" not in report.table() + str(report)
    report.table().encode()
    table = describe(load_file(tmp_path / "w.pth"), "w.pth")
    assert len(table) < 10_000
    table.encode()


def test_many_names_of_one_tensor_are_refused_before_they_become_copies(tmp_path):
    shared = torch.zeros(1_000_000)
    norms = {f"res2_0_branch2a_bn{i}_s": shared for i in range(40)}
    torch.save({"conv1_w": shared, "res2_0_branch2a_w": shared, **norms}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"42 tensors share 4.0 MB, and would be 168 MB as copies"):
        load_weights(Detector(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"share 4.0 MB"):
        convert_weights(tmp_path / "w.pth", tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "odd", [torch.tensor(1.0), torch.zeros(3), torch.zeros(0, 9), torch.zeros(9, 0), torch.tensor([True])], ids=str
)
@pytest.mark.parametrize("library", ["ours", "Detectron", "torchvision"])
def test_tensors_of_odd_shapes_and_types_under_known_names(library, odd):
    model = foreign.detector()
    state = model.state_dict() if library == "ours" else foreign.torchvision_retinanet(model, version=1)
    if library == "Detectron":
        blobs = foreign.caffe2_retinanet(foreign.as_affine(model))
        state = {name: torch.from_numpy(value) for name, value in blobs.items()}
    target = foreign.detector()
    for part in ("conv1", "layer1.0.conv2", "res2_0_branch2b", "bn1", "bn_s", "cls", "bbox"):
        wrong = {name: odd if part in name else tensor for name, tensor in state.items()}
        with contextlib.suppress(CheckpointError):  # a class layer may be skipped; an error of another kind is a bug
            apply_weights(target, {"model": wrong}, source="w.pth")


def test_a_block_of_a_number_without_end(tmp_path):
    name = f"backbone.bottom_up.res2.{'9' * 10_000}.conv1.weight"
    torch.save({name: torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="fills only"):
        load_weights(foreign.detector(), tmp_path / "w.pth")


def test_a_checkpoint_of_ours_says_what_it_was_trained_with(tmp_path):
    rgb = foreign.detector(
        "INPUT.CHANNELS", "RGB", "MODEL.ANCHORS.OFFSET", 0.5, "MODEL.ANCHORS.SIZES", [16, 32, 64, 128, 256]
    )
    torch.save({"model": rgb.state_dict(), **about_weights(rgb)}, tmp_path / "w.pth")
    notes = load_weights(foreign.detector(), tmp_path / "w.pth").notes
    assert "trained on RGB pictures" in notes[0]
    assert "other anchors" in notes[1]
    assert load_weights(rgb, tmp_path / "w.pth").notes == []


def test_detectron2s_copy_of_torchvisions_backbone_is_known_by_its_author(tmp_path):
    bare = {name: t.numpy() for name, t in foreign.detector().backbone.bottom_up.state_dict().items()}
    content = {"model": bare, "__author__": "torchvision", "matching_heuristics": True}
    notes = load_weights(foreign.detector(), foreign.write_pickle(tmp_path / "R-50.pkl", content)).notes
    assert "RGB pictures" in notes[0]


def test_msra_weights_want_a_deviation_of_one(tmp_path):
    path = foreign.write_pickle(tmp_path / "R-50.pkl", foreign.caffe2_backbone(foreign.detector()))
    notes = load_weights(foreign.detector("MODEL.PIXEL_STD", (58.0, 57.0, 57.0)), path).notes
    assert any("MODEL.PIXEL_STD [1.0, 1.0, 1.0]" in note for note in notes)


def test_a_wrong_shape_says_what_the_file_is_and_its_preset(tmp_path):
    source = foreign.detector("MODEL.HEAD.RetinaNetHead.NORM", "GN")
    torch.save(foreign.torchvision_retinanet(source, version=2), tmp_path / "v2.pth")
    with pytest.raises(
        CheckpointError, match=r"torchvision's RetinaNet \(v2\), which is for configs/presets/torchvision_v2"
    ):
        load_weights(foreign.detector(), tmp_path / "v2.pth")


def test_places_of_anchors_are_compared(tmp_path):
    blobs = foreign.caffe2_retinanet(foreign.as_affine(foreign.detector()))
    path = foreign.write_pickle(tmp_path / "d1.pkl", {"blobs": blobs})
    notes = load_weights(foreign.detector("MODEL.ANCHORS.ROUNDING", "detectron"), path).notes
    assert any("MODEL.ANCHORS.OFFSET 0.5, and it is 0.0" in note for note in notes)
    source = foreign.detector("MODEL.NECK.FPN.TOP_BLOCK_FROM", "P5")
    torch.save(foreign.torchvision_retinanet(source, version=1), tmp_path / "tv.pth")
    assert any("MODEL.ANCHORS.STEPS input" in note for note in load_weights(source, tmp_path / "tv.pth").notes)


def test_the_moving_average_of_a_training_is_no_weight(tmp_path):
    source, target = (foreign.detector("MODEL.CRITERION.NORMALIZER_MOMENTUM", 0.9) for _ in range(2))
    source.criterion.moving_normalizer.fill_(777.0)
    torch.save({"model": source.state_dict()}, tmp_path / "w.pth")
    report = load_weights(target, tmp_path / "w.pth")
    assert float(target.criterion.moving_normalizer) == 100.0
    assert report.skipped == {"criterion.moving_normalizer": "state of training, which starts anew"}


def test_another_detector_of_torchvision_gives_its_backbone_alone(tmp_path):
    state = foreign.torchvision_resnet(foreign.detector(), "backbone.body.", counters=False)
    state |= {
        "backbone.fpn.inner_blocks.0.0.weight": torch.zeros(32, 64, 1, 1),
        "rpn.head.conv.0.0.weight": torch.zeros(1),
    }
    torch.save(state, tmp_path / "frcnn.pth")
    report = load_weights(foreign.detector(), tmp_path / "frcnn.pth")
    assert set(report.skipped) == {"backbone.fpn.inner_blocks.0.0.weight", "rpn.head.conv.0.0.weight"}
    assert all(name.startswith("backbone.bottom_up.") for name in report.loaded)
