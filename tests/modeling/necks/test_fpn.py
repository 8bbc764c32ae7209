import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detkit.modeling.layers import ConvNorm
from detkit.modeling.necks import FPN


class Features(nn.Module):
    """A bottom-up network that returns what it is told to, halved from level to level."""

    def __init__(self, **strides):
        super().__init__()
        self.out_strides = strides
        self.out_channels = {name: 2 * i + 3 for i, name in enumerate(strides)}

    def forward(self, images):
        height, width = images.shape[-2:]
        generator = torch.Generator().manual_seed(0)
        return {
            name: torch.randn(len(images), channels, height // stride, width // stride, generator=generator).to(images)
            for (name, stride), channels in zip(self.out_strides.items(), self.out_channels.values(), strict=True)
        }


@pytest.fixture
def bottom_up():
    return Features(res3=8, res4=16, res5=32)


def reference(neck, images):
    """The pyramid written out level by level from the weights alone."""
    w = dict(neck.named_parameters())
    c = neck.bottom_up(images)

    def conv(name, x, **options):
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **options)

    def double(x):
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    m5 = conv("fpn_lateral5", c["res5"])
    m4 = conv("fpn_lateral4", c["res4"]) + double(m5)
    m3 = conv("fpn_lateral3", c["res3"]) + double(m4)
    p = {f"p{i}": conv(f"fpn_output{i}", m, padding=1) for i, m in ((3, m3), (4, m4), (5, m5))}
    p["p6"] = conv("top_block.p6", c["res5"] if neck.top_block_from == "C5" else p["p5"], stride=2, padding=1)
    p["p7"] = conv("top_block.p7", p["p6"].clamp(min=0), stride=2, padding=1)
    return p


@pytest.mark.parametrize("top_block_from", ["C5", "P5"])
def test_the_pyramid_is_the_one_written_out(bottom_up, top_block_from):
    neck = FPN(bottom_up, out_channels=6, top_block_from=top_block_from).double()
    images = torch.zeros(2, 3, 96, 160, dtype=torch.float64)
    actual, expected = neck(images), reference(neck, images)
    assert list(actual) == list(expected)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name])


@pytest.mark.parametrize(("height", "width"), [(32, 32), (96, 160), (64, 224)])
def test_sizes_are_divided_by_the_strides_and_rounded_up(bottom_up, height, width):
    neck = FPN(bottom_up, out_channels=4)
    levels = neck(torch.zeros(1, 3, height, width))
    assert neck.out_strides == {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
    assert neck.size_divisibility == 32
    assert {name: tuple(x.shape[1:]) for name, x in levels.items()} == {
        name: (neck.out_channels[name], math.ceil(height / stride), math.ceil(width / stride))
        for name, stride in neck.out_strides.items()
    }


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 32), (96, 64)])
def test_the_smallest_maps_have_finite_gradients_in_bfloat16(bottom_up, height, width):
    neck = FPN(bottom_up, out_channels=16)
    for _ in range(10):
        poison = [torch.full((n,), torch.nan) for n in (16, 64, 256, 1024, 2304, 4096)]
        del poison  # memory that is freed now is what an operation that forgets to write its own would read
        with torch.autocast("cpu", dtype=torch.bfloat16):
            levels = neck(torch.zeros(1, 3, height, width))
        neck.zero_grad()
        sum(x.float().sum() for x in levels.values()).backward()
        assert all(torch.isfinite(p.grad).all() for p in neck.parameters())


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 32), (32, 64)])
def test_the_smallest_pyramid_is_the_one_written_out(bottom_up, height, width):
    neck = FPN(bottom_up, out_channels=4).double()
    images = torch.zeros(1, 3, height, width, dtype=torch.float64)
    torch.testing.assert_close(neck(images), reference(neck, images))


def test_levels_follow_the_strides_of_the_bottom_up_network():
    neck = FPN(Features(res2=4, res3=8), out_channels=4)
    assert list(neck(torch.zeros(1, 3, 32, 32))) == list(neck.out_strides) == ["p2", "p3", "p4", "p5"]
    assert neck.size_divisibility == 8


def test_weights_start_uniform_over_the_fan_in_and_biases_at_zero(bottom_up):
    torch.manual_seed(0)
    neck = FPN(bottom_up, out_channels=64)
    for name, conv in neck.named_modules():
        if isinstance(conv, nn.Conv2d):
            bound = math.sqrt(3 / conv.weight[0].numel())
            assert bound * 0.9 < conv.weight.abs().max().item() <= bound, name
            assert not conv.bias.any(), name


def test_p6_takes_the_channels_of_its_source(bottom_up):
    assert FPN(bottom_up, out_channels=4).top_block.p6.in_channels == bottom_up.out_channels["res5"]
    assert FPN(bottom_up, out_channels=4, top_block_from="P5").top_block.p6.in_channels == 4


@pytest.mark.parametrize("norm", ["BN", "GN"])
def test_a_norm_replaces_the_biases_of_lateral_and_output_convolutions_only(bottom_up, norm):
    neck = FPN(bottom_up, out_channels=8, norm=norm)
    for name, conv in neck.named_children():
        if isinstance(conv, ConvNorm):
            assert conv.norm is not None, name
            assert conv.bias is None, name
    assert neck.top_block.p6.norm is None
    assert all(torch.isfinite(x).all() for x in neck(torch.randn(1, 3, 64, 64)).values())


def test_a_norm_that_no_weights_file_could_fill_is_refused(bottom_up):
    with pytest.raises(ValueError, match="norm 'FrozenBN' is not one of '', 'BN', 'GN'"):
        FPN(bottom_up, norm="FrozenBN")


def test_a_pyramid_without_channels_is_refused(bottom_up):
    with pytest.raises(ValueError, match="FPN: out_channels 0 is below 1"):
        FPN(bottom_up, out_channels=0)


def test_a_pyramid_with_a_gap_is_refused():
    with pytest.raises(ValueError, match="skip a level"):
        FPN(Features(res2=4, res4=16))


def test_a_stride_that_is_no_power_of_two_is_refused():
    with pytest.raises(ValueError, match="stride 12 of feature 'res3'"):
        FPN(Features(res3=12))


@pytest.mark.parametrize(("wanted", "divisibility"), [(None, 32), (32, 32), (128, 128)])
def test_what_inputs_are_padded_to(bottom_up, wanted, divisibility):
    assert FPN(bottom_up, out_channels=8, size_divisibility=wanted).size_divisibility == divisibility


@pytest.mark.parametrize("wanted", [0, -32, 16, 48])
def test_padding_must_fit_the_coarsest_feature(bottom_up, wanted):
    with pytest.raises(ValueError, match=f"size_divisibility {wanted} is not a multiple of 32"):
        FPN(bottom_up, out_channels=8, size_divisibility=wanted)
