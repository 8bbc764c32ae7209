import math
from typing import Any

import pytest
import torch
from torch import nn

from detkit.modeling.backbones import ResNet
from detkit.modeling.layers import FrozenBatchNorm2d

# Parameters of torchvision's networks without their classifiers (2048 or 512 -> 1000).
PARAMETERS = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160, 152: 58_143_808}
NARROW: dict[str, Any] = {"depth": 50, "stem_channels": 8, "res2_channels": 16, "width_per_group": 4}


def narrow(**options):
    return ResNet(**{**NARROW, **options})


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("depth", PARAMETERS)
def test_every_depth_has_the_parameters_of_the_published_network(depth):
    with torch.device("meta"):
        assert count(ResNet(depth=depth, norm="BN", freeze_at=0)) == PARAMETERS[depth]


def test_resnext_101_32x8d_has_its_parameters_and_groups():
    with torch.device("meta"):
        net = ResNet(depth=101, num_groups=32, width_per_group=8, stride_in_1x1=False, norm="BN", freeze_at=0)
    assert count(net) == 86_742_336
    assert [net.get_parameter(f"res{i}.0.conv2.weight").shape for i in (2, 3, 4, 5)] == [
        (256, 8, 3, 3),
        (512, 16, 3, 3),
        (1024, 32, 3, 3),
        (2048, 64, 3, 3),
    ]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (33, 64), (65, 31)])
@pytest.mark.parametrize("depth", [18, 50])
def test_features_are_fine_to_coarse_of_the_stated_channels_and_strides(depth, height, width):
    net = narrow(depth=depth, norm="GN", out_features=("res5", "res2", "res3", "res4"))
    features = net(torch.randn(2, 3, height, width))
    assert list(features) == ["res2", "res3", "res4", "res5"] == list(net.out_strides) == list(net.out_channels)
    assert net.out_strides == {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
    for name, x in features.items():
        stride = net.out_strides[name]
        assert x.shape == (2, net.out_channels[name], math.ceil(height / stride), math.ceil(width / stride))
        assert torch.isfinite(x).all()


def test_widths_double_from_stage_to_stage():
    with torch.device("meta"):
        assert ResNet(depth=50).out_channels == {"res3": 512, "res4": 1024, "res5": 2048}
        assert ResNet(depth=34).out_channels == {"res3": 128, "res4": 256, "res5": 512}
        assert narrow().out_channels == {"res3": 32, "res4": 64, "res5": 128}


def test_stages_beyond_the_last_feature_are_not_built():
    net = narrow(out_features=("res2", "res3"))
    assert [name for name, _ in net.named_children()] == ["stem", "res2", "res3"]
    assert list(net(torch.zeros(1, 3, 32, 32))) == ["res2", "res3"]


@pytest.mark.parametrize(("stride_in_1x1", "strides"), [(True, ((2, 2), (1, 1))), (False, ((1, 1), (2, 2)))])
def test_the_stride_sits_in_the_first_1x1_or_in_the_3x3(stride_in_1x1, strides):
    net = narrow(stride_in_1x1=stride_in_1x1)
    assert (net.res3[0].conv1.stride, net.res3[0].conv2.stride) == strides
    assert net.res3[0].shortcut.stride == (2, 2)
    assert net.res3[1].conv1.stride == net.res3[1].conv2.stride == net.res2[0].conv1.stride == (1, 1)


def test_only_the_first_block_of_a_stage_projects_its_shortcut_and_only_where_channels_change():
    net = narrow(depth=18, norm="BN", res2_channels=8)
    assert net.res2[0].shortcut is None
    assert net.res3[0].shortcut is not None
    assert net.res3[1].shortcut is None


def test_convolutions_start_from_he_normal_over_the_fan_out():
    torch.manual_seed(0)
    net = ResNet(depth=50, width_per_group=64, out_features=("res2",))
    weight = net.res2[1].conv2.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)
    assert net.res2[0].shortcut.weight.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.02)


@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "GN"])
@pytest.mark.parametrize("freeze_at", range(6))
def test_the_first_stages_are_frozen_and_the_others_train(norm, freeze_at):
    net = narrow(norm=norm, freeze_at=freeze_at).train()
    for i, part in enumerate(net.children()):
        assert all(p.requires_grad == (i >= freeze_at) for p in part.parameters())


@pytest.mark.parametrize("freeze_at", [1, 2, 3])
def test_frozen_stages_are_out_of_autograd_and_in_evaluation_although_the_network_trains(freeze_at):
    net = narrow(norm="BN", freeze_at=freeze_at, out_features=("res2", "res3")).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    features = net(torch.randn(2, 3, 32, 32))
    assert features["res2"].requires_grad == (freeze_at < 2)
    assert features["res3"].requires_grad == (freeze_at < 3)
    changed = {k.split(".")[0] for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == set(["stem", "res2", "res3"][freeze_at:])


def test_frozen_stages_of_a_trained_norm_hold_frozen_norms():
    net = narrow(norm="BN", freeze_at=2)
    assert isinstance(net.stem.conv1.norm, FrozenBatchNorm2d)
    assert isinstance(net.res2[0].conv3.norm, FrozenBatchNorm2d)
    assert isinstance(net.res3[0].conv1.norm, nn.BatchNorm2d)


def test_a_training_step_reaches_every_parameter_that_trains():
    net = narrow(norm="GN", freeze_at=1)
    sum(x.sum() for x in net(torch.randn(1, 3, 64, 64)).values()).backward()
    assert all((p.grad is not None) == p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 20}, "depth 20 is not one of 18, 34, 50"),
        ({"norm": ""}, "norm is empty"),
        ({"norm": "LN"}, "unknown norm 'LN'"),
        ({"freeze_at": 6}, "freeze_at 6"),
        ({"freeze_at": -1}, "freeze_at -1"),
        ({"depth": 18, "num_groups": 32}, "num_groups 32 needs bottlenecks"),
        ({"num_groups": 0}, "num_groups 0 is below 1"),
        ({"width_per_group": 0}, "width_per_group 0 is below 1"),
        ({"stem_channels": -1}, "stem_channels -1 is below 1"),
        ({"res2_channels": 0}, "res2_channels 0 is below 1"),
        ({"out_features": ()}, "out_features"),
        ({"out_features": ("res3", "c5")}, "out_features.*'c5'"),
    ],
)
def test_impossible_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**options)
