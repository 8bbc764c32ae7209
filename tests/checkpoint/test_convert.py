"""Weights written in other formats come back bit for bit."""

import pickle

import pytest
import torch

from detkit.checkpoint import CheckpointError, load_file, load_weights
from detkit.checkpoint.convert import convert_weights
from detkit.checkpoint.weights import tensors_in
from detkit.cli import main
from tests.checkpoint import foreign

NAMES = ("cat", "dog")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model = foreign.detector("MODEL.CRITERION.NORMALIZER_MOMENTUM", 0.9, classes=2)
    path = tmp_path_factory.mktemp("convert") / "model_final.pth"
    torch.save({"model": model.state_dict(), "class_names": list(NAMES), "config": "SEED: 1\n", "iteration": 5}, path)
    return path


def state(path):
    return tensors_in(load_file(path), path)


def identical(a, b):
    assert sorted(a) == sorted(b)
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype
        assert tensor.shape == b[name].shape
        assert torch.equal(tensor, b[name])


@pytest.mark.parametrize("suffix", ["pkl", "safetensors", "pth"])
def test_there_and_back_is_bit_identical(checkpoint, suffix, tmp_path):
    convert_weights(checkpoint, tmp_path / f"there.{suffix}")
    convert_weights(tmp_path / f"there.{suffix}", tmp_path / "back.pth")
    before, after = load_file(checkpoint), load_file(tmp_path / "back.pth")
    identical(before["model"], after["model"])
    assert (after["class_names"], after["config"]) == (list(NAMES), "SEED: 1\n")


def test_detectron2s_format_is_what_detectron2_reads(checkpoint, tmp_path):
    convert_weights(checkpoint, tmp_path / "m.pkl")
    content = pickle.loads((tmp_path / "m.pkl").read_bytes(), encoding="latin1")  # as detectron2 does
    assert content["__author__"] == "detkit"
    assert "matching_heuristics" not in content, "so that it takes the names as they are"
    names = set(content["model"])
    assert "backbone.bottom_up.res2.0.conv1.norm.running_mean" in names
    assert {"head.cls_score.weight", "head.cls_subnet.6.bias", "backbone.top_block.p7.weight"} <= names
    assert {type(value).__name__ for value in content["model"].values()} == {"ndarray"}


@pytest.mark.parametrize("suffix", ["pkl", "safetensors", "pth"])
def test_a_backbone_alone_starts_another_detector(checkpoint, suffix, tmp_path):
    names = convert_weights(checkpoint, tmp_path / f"b.{suffix}", backbone_only=True)
    assert "stem.conv1.weight" in names
    target = foreign.detector(seed=3)
    report = load_weights(target, tmp_path / f"b.{suffix}")
    assert {name for name in report.missing if name.startswith("backbone.bottom_up.")} == set()
    assert len(report.loaded) == len(names)
    convert_weights(tmp_path / f"b.{suffix}", tmp_path / "again.pth", backbone_only=True)
    identical(state(tmp_path / f"b.{suffix}"), state(tmp_path / "again.pth"))


def test_a_file_of_detectron_becomes_one_of_detectron2(tmp_path):
    source = foreign.as_affine(foreign.detector())
    path = foreign.write_pickle(tmp_path / "d1.pkl", {"blobs": foreign.caffe2_retinanet(source)})
    convert_weights(path, tmp_path / "d2.pkl")
    target = foreign.detector(seed=3)
    assert load_weights(target, tmp_path / "d2.pkl").missing == {}
    for name, tensor in source.state_dict().items():
        torch.testing.assert_close(target.state_dict()[name], tensor)


def test_half_precision_keeps_its_bits(tmp_path):
    torch.save({"stem.conv1.weight": torch.randn(4, 3, 7, 7).bfloat16()}, tmp_path / "h.pth")
    convert_weights(tmp_path / "h.pth", tmp_path / "h.safetensors")
    identical(state(tmp_path / "h.pth"), state(tmp_path / "h.safetensors"))
    with pytest.raises(CheckpointError, match="bfloat16, which NumPy lacks"):
        convert_weights(tmp_path / "h.pth", tmp_path / "h.pkl")
    assert not (tmp_path / "h.pkl").exists()


def test_mistakes(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match=r"x.onnx: the suffix must be one of .pkl, .safetensors, .pth"):
        convert_weights(checkpoint, tmp_path / "x.onnx")
    with pytest.raises(CheckpointError, match="is there already"):
        convert_weights(checkpoint, checkpoint)
    torch.save({"head.cls_score.weight": torch.zeros(3)}, tmp_path / "head.pth")
    with pytest.raises(CheckpointError, match="holds no backbone"):
        convert_weights(tmp_path / "head.pth", tmp_path / "b.pth", backbone_only=True)


def test_the_commands(checkpoint, tmp_path, capsys):
    target = tmp_path / "m.safetensors"
    assert main(["convert", str(checkpoint), str(target)]) == 0
    assert "m.safetensors: 3" in capsys.readouterr().out
    assert main(["convert", str(checkpoint), str(target)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["weights", str(target)]) == 0
    out = capsys.readouterr().out
    assert "classes: cat, dog" in out
    assert "head.cls_score.weight" in out
    (tmp_path / "narrow.yaml").write_text("SEED: 0\n")
    overrides = [str(value) for value in foreign.NARROW]
    words = ["weights", str(target), "--config-file", str(tmp_path / "narrow.yaml"), "--num-classes", "2", *overrides]
    assert main(words) == 0
    assert "| loaded" in capsys.readouterr().out


def test_what_is_no_config_does_not_go_along_and_views_are_written_as_what_they_show(tmp_path):
    view = torch.tensor([1 + 2j]).conj().imag
    torch.save({"model": {"stem.x": view}, "config": torch.ones(3)}, tmp_path / "w.pth")
    for suffix in ("pkl", "safetensors", "pth"):
        convert_weights(tmp_path / "w.pth", tmp_path / f"x.{suffix}")
        content = load_file(tmp_path / f"x.{suffix}")
        assert content["model"]["stem.x"].tolist() == [-2.0]
        assert "config" not in content


@pytest.mark.parametrize("suffix", ["pkl", "safetensors", "pth"])
@pytest.mark.parametrize("backbone_only", [False, True])
def test_what_weights_were_trained_with_goes_along(suffix, backbone_only, tmp_path):
    """Else a converted file of torchvision would load into another detector without a word."""
    source = tmp_path / "tv.pth"
    torch.save(foreign.torchvision_resnet(foreign.detector()), source)
    expected = load_weights(foreign.detector(), source).notes
    assert len(expected) == 5  # channels, mean, deviation, stride; the preset
    convert_weights(source, tmp_path / f"c.{suffix}", backbone_only=backbone_only)
    notes = load_weights(foreign.detector(), tmp_path / f"c.{suffix}").notes
    assert notes[:4] == expected[:4]
    convert_weights(tmp_path / f"c.{suffix}", tmp_path / "again.pth", backbone_only=backbone_only)
    assert load_weights(foreign.detector(), tmp_path / "again.pth").notes[:4] == expected[:4]


def test_names_of_no_library_are_not_converted(tmp_path):
    torch.save({"backbone.conv1.weight": torch.zeros(3), "bbox_head.x": torch.zeros(3)}, tmp_path / "mm.pth")
    with pytest.raises(CheckpointError, match=r"names are of no library that is read here \(this looks like mmdet"):
        convert_weights(tmp_path / "mm.pth", tmp_path / "x.pkl")


@pytest.mark.parametrize("text", ["[", "[1]", '{"other": 1}', '{"channels": "XYZ"}', '{"anchors": [[1]]}', "[" * 9999])
def test_a_damaged_word_of_what_weights_were_trained_with(text, tmp_path):
    torch.save({"model": foreign.detector().state_dict(), "trained_with": text}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="'trained_with' is not what detkit writes there"):
        load_weights(foreign.detector(), tmp_path / "w.pth")
