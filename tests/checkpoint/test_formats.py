"""Files in each real format, from random weights, load completely and give the outputs of the detector they are of."""

import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from detkit.checkpoint import CheckpointError, load_file, load_weights
from detkit.structures import Batch
from tests.checkpoint import foreign

P5 = ("MODEL.NECK.FPN.TOP_BLOCK_FROM", "P5")
GN = ("MODEL.HEAD.RetinaNetHead.NORM", "GN")
TORCHVISION = ("INPUT.CHANNELS", "RGB", "MODEL.BACKBONE.ResNet.STRIDE_IN_1X1", False)


def pictures():
    torch.manual_seed(9)
    sizes = torch.tensor([[60, 64], [64, 50]])
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), sizes


@torch.no_grad()
def outputs(model):
    raw = model.raw_outputs(*pictures())
    return torch.cat(raw.logits, 1), torch.cat(raw.deltas, 1)


def same_outputs(a, b):
    for x, y in zip(outputs(a), outputs(b), strict=True):
        assert torch.isfinite(x).all()
        assert x.std() > 1e-3
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-5)


def torch_save(path, content):
    torch.save(content, path)
    return path


def legacy_save(path, content):
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def arrays(state):
    return OrderedDict((name, tensor.numpy()) for name, tensor in state.items())


OLD_CONSTANTS = {
    "pixel_mean": torch.tensor([103.53, 116.28, 123.675]).reshape(3, 1, 1),
    "pixel_std": torch.ones(3, 1, 1),
    "anchor_generator.cell_anchors.0": None,  # filled in below
}


def detectron2_zoo(path, model):
    constants = {**OLD_CONSTANTS, "anchor_generator.cell_anchors.0": model.anchors.cell_anchors[0]}
    content = {"model": arrays({**model.state_dict(), **constants}), "__author__": "Detectron2 Model Zoo"}
    return foreign.write_pickle(path, content, protocol=4)


def detectron2_checkpoint(path, model):
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    content = {"model": model.state_dict(), "optimizer": optimiser.state_dict(), "iteration": 89999}
    return torch_save(path, {**content, "scheduler": {"last_epoch": 9, "base_lrs": [0.01]}})


WHOLE = {  # name -> (how the file is written, how the detector is built)
    "detkit": (lambda p, m: torch_save(p, {"model": m.state_dict(), "iteration": 3, "class_names": ["a"] * 80}), ()),
    "state dict": (lambda p, m: torch_save(p, m.state_dict()), ()),
    "distributed": (lambda p, m: torch_save(p, {f"module.{k}": v for k, v in m.state_dict().items()}), ()),
    "compiled": (lambda p, m: torch_save(p, torch.compile(m).state_dict()), ()),
    "averaged": (lambda p, m: torch_save(p, torch.optim.swa_utils.AveragedModel(m, use_buffers=True).state_dict()), ()),
    "lightning's container": (lambda p, m: torch_save(p, {"state_dict": m.state_dict()}), ()),
    "detectron2 zoo": (detectron2_zoo, ()),
    "detectron2 checkpoint": (detectron2_checkpoint, ()),
    "detectron2, torch before 1.6": (lambda p, m: legacy_save(p, {"model": m.state_dict()}), ()),
    "safetensors": (lambda p, m: (save_file({k: v.clone() for k, v in m.state_dict().items()}, p), p)[1], ()),
    "detectron": (
        lambda p, m: foreign.write_pickle(p, {"blobs": foreign.caffe2_retinanet(foreign.as_affine(m)), "cfg": "A: 1"}),
        (),
    ),
    "torchvision v1": (lambda p, m: torch_save(p, foreign.torchvision_retinanet(m, version=1)), P5),
    "torchvision v1, old names": (
        lambda p, m: legacy_save(p, OrderedDict(foreign.torchvision_retinanet(m, version=1, old_names=True))),
        P5,
    ),
    "torchvision v2": (lambda p, m: torch_save(p, foreign.torchvision_retinanet(m, version=2)), GN),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_detector_loads_completely(name, tmp_path):
    write, options = WHOLE[name]
    options = (*options, *TORCHVISION) if "torchvision" in name else options
    source = foreign.detector(*options, seed=1)
    if name == "torchvision v2":
        for part, tensor in source.state_dict().items():
            if "_subnet" in part and part.endswith("bias") and int(part.split(".")[-2]) % 3 == 0:
                tensor.zero_()
    path = write(tmp_path / "weights.bin", source)  # no suffix helps
    target = foreign.detector(*options, seed=2)
    report = load_weights(target, path)
    assert report.missing == {}
    left = {row.source: row.why for row in report.rows if row.status == "skipped"}
    allowed = ("momentum of the optimiser", "a constant of the config", "a counter that a frozen norm lacks")
    assert set(left.values()) <= set(allowed), left
    assert set(report.loaded) == set(target.state_dict())
    same_outputs(source, target)
    for key, tensor in source.state_dict().items():
        if "v1" in name and key.endswith(("norm.weight", "norm.running_var")):
            continue  # the norm is the same; the outputs say so
        torch.testing.assert_close(target.state_dict()[key], tensor, atol=1e-6, rtol=1e-6)


def test_norms_without_an_epsilon_are_the_same_at_the_smallest_variances(tmp_path):
    """torchvision's version 1 divides by the root of the variance alone, which trained networks have down to 1e-13."""
    options = (*P5, *TORCHVISION)
    state = foreign.torchvision_retinanet(foreign.detector(*options, seed=1), version=1)
    body = "backbone.body.bn1"
    state[f"{body}.running_var"] = torch.logspace(-13, 1, 8)
    target = foreign.detector(*options, seed=2)
    load_weights(target, torch_save(tmp_path / "v1.pth", state))
    x = torch.randn(2, 8, 5, 5)
    mean, var, scale, shift = (state[f"{body}.{p}"][:, None, None].double() for p in
                               ("running_mean", "running_var", "weight", "bias"))  # fmt: skip
    expected = (x - mean) / var.sqrt() * scale + shift
    got = target.backbone.bottom_up.stem.conv1.norm(x)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_caffe2_backbone_of_every_pickle_protocol(protocol, tmp_path):
    source = foreign.as_affine(foreign.detector(seed=1))
    path = foreign.write_pickle(tmp_path / "R-50.pkl", foreign.caffe2_backbone(source), protocol)
    target = foreign.detector(seed=2)
    report = load_weights(target, path)
    assert set(report.skipped.values()) == {
        "the classifier of ImageNet",
        "a bias before a norm, which Detectron does not use",
    }
    assert all(not name.startswith("backbone.bottom_up.") for name in report.missing)
    for key, tensor in source.backbone.bottom_up.state_dict().items():
        assert torch.equal(target.backbone.bottom_up.state_dict()[key], tensor), key


def python2_pickle(arrays_by_name):
    """A pickle of protocol 2 as Python 2 wrote it: byte strings for names and content (SHORT_BINSTRING, BINSTRING)."""

    def text(value):
        data = value.encode("latin-1") if isinstance(value, str) else value
        return b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + len(data).to_bytes(4, "little") + data

    def number(value):
        return b"J" + value.to_bytes(4, "little", signed=True)

    out = b"\x80\x02}("
    for name, array in arrays_by_name.items():
        shape = b"(" + b"".join(number(n) for n in array.shape) + b"t"
        kind = b"cnumpy\ndtype\n" + text("f4") + b"K\x00K\x01\x87R(K\x03" + text("<") + b"NNNJ\xff\xff\xff\xff"
        kind += b"J\xff\xff\xff\xffK\x00tb"
        out += text(name) + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R"
        out += b"(K\x01" + shape + kind + b"\x89" + text(array.tobytes()) + b"tb"
    return out + b"u."


def test_a_pickle_of_python_2(tmp_path):
    blobs = foreign.caffe2_backbone(foreign.as_affine(foreign.detector(seed=1)))
    data = python2_pickle(blobs)
    theirs = pickle.loads(data, encoding="latin1")
    assert all(np.array_equal(theirs[name], blobs[name]) for name in blobs), "the test writes what Python 2 wrote"
    (tmp_path / "R-50.pkl").write_bytes(data)
    target = foreign.detector(seed=2)
    load_weights(target, tmp_path / "R-50.pkl")
    assert np.array_equal(target.backbone.bottom_up.res2[0].conv2.weight.detach().numpy(), blobs["res2_0_branch2b_w"])


@torch.no_grad()
def test_a_caffe2_backbone_computes_what_its_blobs_say(tmp_path):
    """The stem and a block with Detectron's own formula: convolution without bias, times the scale, plus the shift."""
    source = foreign.as_affine(foreign.detector(seed=1))
    blobs = foreign.caffe2_backbone(source)
    target = foreign.detector(seed=2)
    load_weights(target, foreign.write_pickle(tmp_path / "R-50.pkl", blobs))
    blob = lambda name: torch.from_numpy(blobs[name])  # noqa: E731

    def affine(x, conv, norm, **options):
        x = F.conv2d(x, blob(f"{conv}_w"), **options)
        return x * blob(f"{norm}_s")[:, None, None] + blob(f"{norm}_b")[:, None, None]

    def unit(x, name, stride):
        y = F.relu(affine(x, f"{name}_branch2a", f"{name}_branch2a_bn", stride=stride))
        y = F.relu(affine(y, f"{name}_branch2b", f"{name}_branch2b_bn", padding=1))
        y = affine(y, f"{name}_branch2c", f"{name}_branch2c_bn")
        has_projection = f"{name}_branch1_w" in blobs
        return F.relu(y + (affine(x, f"{name}_branch1", f"{name}_branch1_bn", stride=stride) if has_projection else x))

    x = torch.randn(2, 3, 64, 48)
    expected = F.max_pool2d(F.relu(affine(x, "conv1", "res_conv1_bn", stride=2, padding=3)), 3, 2, 1)
    for name, stride in (("res2_0", 1), ("res2_1", 1), ("res2_2", 1), ("res3_0", 2)):
        expected = unit(expected, name, stride)
    net = target.backbone.bottom_up
    got = net.res3[0](net.res2(net.stem(x)))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_a_torchvision_resnet(legacy, norm, tmp_path):
    options = (*TORCHVISION, "MODEL.BACKBONE.ResNet.NORM", norm, "MODEL.BACKBONE.ResNet.FREEZE_AT", 0)
    source, target = foreign.detector(*options, seed=1), foreign.detector(*options, seed=2)
    state = {
        name: tensor
        for name, tensor in foreign.torchvision_resnet(source, counters=norm == "FrozenBN").items()
        if "num_batches" not in name or norm == "FrozenBN"
    }
    state = {**state, "fc.weight": torch.zeros(10, 4), "fc.bias": torch.zeros(10)}
    report = load_weights(target, (legacy_save if legacy else torch_save)(tmp_path / "resnet50.pth", state))
    reasons = {"the classifier of ImageNet"} | ({"a counter that a frozen norm lacks"} if norm == "FrozenBN" else set())
    assert set(report.skipped.values()) == reasons
    for key, tensor in source.backbone.bottom_up.state_dict().items():
        if "num_batches" not in key:
            assert torch.equal(target.backbone.bottom_up.state_dict()[key], tensor), key


def test_a_full_size_resnet_50_and_resnext_101_have_the_published_numbers_of_tensors():
    from detkit.config import get_cfg
    from detkit.modeling import build_detector

    def count(*options):
        cfg = get_cfg()
        cfg.merge_from_list(list(options))
        with torch.device("meta"):
            model = build_detector(cfg, 80)
        state = model.backbone.bottom_up.state_dict()
        convs = [k for k in state if k.endswith("weight") and "norm" not in k]
        return len(convs), sum(state[k].numel() for k in convs) + sum(
            v.numel() for k, v in state.items() if k.endswith(("norm.weight", "norm.bias"))
        )

    # He et al. and Xie et al.: 25.557 M and 88.791 M parameters with a classifier of 2,049,000.
    assert count() == (53, 25_557_032 - 2_049_000)
    wide = ("MODEL.BACKBONE.ResNet.DEPTH", 101, "MODEL.BACKBONE.ResNet.NUM_GROUPS", 32)
    assert count(*wide, "MODEL.BACKBONE.ResNet.WIDTH_PER_GROUP", 8) == (104, 88_791_336 - 2_049_000)


def test_a_detector_of_the_file_detects_the_same(tmp_path):
    """From pictures to detections, through the format in which the model zoo of detectron2 is."""
    source = foreign.detector(seed=1)
    target = foreign.detector(seed=2)
    load_weights(target, detectron2_zoo(tmp_path / "m.pkl", source))
    batch = Batch.from_images(list(pictures()[0]), original_sizes=[(128, 120), (60, 64)])
    for a, b in zip(source(batch), target(batch), strict=True):
        assert len(a.boxes)
        assert torch.equal(a.boxes, b.boxes)
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.classes, b.classes)


@pytest.mark.parametrize("library", ["torchvision", "caffe2"])
def test_a_resnext(library, tmp_path):
    """Groups, and the stride in the 3x3: of torchvision's resnext101_32x8d and of X-101-32x8d.pkl, narrow."""
    groups = ("MODEL.BACKBONE.ResNet.NUM_GROUPS", 4, "MODEL.BACKBONE.ResNet.STRIDE_IN_1X1", False)
    source, target = (foreign.as_affine(foreign.detector(*groups, seed=seed)) for seed in (1, 2))
    path = tmp_path / "x"
    if library == "caffe2":
        foreign.write_pickle(path, foreign.caffe2_backbone(source))
    else:
        torch.save(foreign.torchvision_resnet(source), path)
    report = load_weights(target, path)
    assert not any("STRIDE_IN_1X1" in note for note in report.notes)
    for key, tensor in source.backbone.bottom_up.state_dict().items():
        assert torch.equal(target.backbone.bottom_up.state_dict()[key], tensor), key
    wrong = foreign.detector(*groups[:2])
    assert any("STRIDE_IN_1X1 should be false" in note for note in load_weights(wrong, path).notes)
    with pytest.raises(CheckpointError, match=r"looks like ResNeXt-50-4x4d, and the config's backbone is ResNet-50"):
        load_weights(foreign.detector(), path)


def test_an_array_of_many_names_is_one_tensor(tmp_path):
    """As NumPy pickles it, once; a hundred thousand names of one array would else be as many copies."""
    array = np.arange(4.0)
    content = load_file(foreign.write_pickle(tmp_path / "w.pkl", {"model": {"a": array, "b": array}}))
    assert content["model"]["a"] is content["model"]["b"]


@pytest.mark.parametrize("write", [torch_save, legacy_save])
@pytest.mark.parametrize(
    "beside",
    [torch.ones(3, 1).expand(3, 5), torch.arange(5.0).as_strided((3, 3), (1, 1)), torch.ones(2, dtype=torch.complex64),
     1 + 2j, {1, 2}, torch.Size([1]), torch.float32, None, torch.device("cuda:0"), torch.nn.Parameter(torch.ones(2))],
    ids=["expanded", "overlapping", "complex", "number", "set", "size", "dtype", "none", "device", "parameter"],
)  # fmt: skip
def test_what_people_save_beside_their_weights(write, beside, tmp_path):
    content = load_file(write(tmp_path / "w.pth", {"model": {"a": torch.ones(1)}, "beside": beside}))["beside"]
    assert torch.equal(content, beside) if isinstance(beside, torch.Tensor) else content == beside


@pytest.mark.parametrize("protocol", [4, 5])
def test_a_protocol_that_torch_does_not_load_is_said(protocol, tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth", pickle_protocol=protocol)
    with pytest.raises(CheckpointError, match=r"w.pth: .*pickle_protocol above 3\); save it anew"):
        load_file(tmp_path / "w.pth")
