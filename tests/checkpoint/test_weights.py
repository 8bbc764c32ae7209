"""Loading weights: what fits is loaded, what does not is said, and a wrong file changes nothing."""

import pytest
import torch
from torch import nn

from detkit.checkpoint import CheckpointError, load_weights
from detkit.config import get_cfg
from detkit.modeling import build_detector


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
