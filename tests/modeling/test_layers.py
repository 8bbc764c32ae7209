import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detkit.modeling.layers import ConvNorm, FrozenBatchNorm2d, make_norm


@pytest.fixture
def frozen():
    norm = FrozenBatchNorm2d(6)
    for buffer in norm.buffers():
        buffer.copy_(torch.rand(6) + 0.5)
    return norm


def test_frozen_batch_norm_is_batch_norm_in_evaluation(frozen):
    x = torch.randn(2, 6, 5, 4)
    expected = F.batch_norm(x, frozen.running_mean, frozen.running_var, frozen.weight, frozen.bias, eps=1e-5)
    torch.testing.assert_close(frozen(x), expected)


def test_frozen_batch_norm_has_the_names_of_batch_norm_and_eps_1e_5(frozen):
    assert set(frozen.state_dict()) == {"weight", "bias", "running_mean", "running_var"}
    assert not list(frozen.parameters())
    assert frozen.eps == 1e-5


def test_frozen_batch_norm_does_not_change_in_training(frozen):
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    x = torch.randn(2, 6, 5, 4)
    assert torch.equal(frozen.train()(x), frozen.eval()(x))
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())


def test_a_frozen_norm_folded_into_its_convolution_is_convolution_then_norm(frozen):
    conv = ConvNorm(4, 6, 3, stride=2, groups=2, norm="FrozenBN").double()
    conv.norm = frozen.double()
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64, requires_grad=True)
    plain = frozen(F.conv2d(x, conv.weight, stride=2, padding=1, groups=2))
    inputs = (x, conv.weight)
    torch.testing.assert_close(conv(x), plain)
    torch.testing.assert_close(
        torch.autograd.grad(conv(x).square().sum(), inputs), torch.autograd.grad(plain.square().sum(), inputs)
    )


@pytest.mark.parametrize(
    ("norm", "kind"), [("FrozenBN", FrozenBatchNorm2d), ("BN", nn.BatchNorm2d), ("GN", nn.GroupNorm)]
)
def test_a_convolution_has_a_norm_instead_of_a_bias(norm, kind):
    conv = ConvNorm(3, 8, 3, norm=norm)
    assert conv.bias is None
    assert isinstance(conv.norm, kind)


def test_a_convolution_without_norm_has_a_bias_and_the_keys_of_a_plain_one():
    assert set(ConvNorm(3, 8, 1).state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize(("kernel", "size", "expected"), [(1, 1, 1), (3, 1, 1), (3, 5, 3), (7, 8, 4)])
def test_sizes_are_divided_by_the_stride_and_rounded_up(kernel, size, expected):
    assert ConvNorm(3, 2, kernel, stride=2)(torch.zeros(1, 3, size, size)).shape[-2:] == (expected, expected)


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (64, 32), (48, 16), (8, 8), (7, 1)])
def test_group_norm_has_32_groups_or_as_many_as_divide_the_channels(channels, groups):
    norm = make_norm("GN", channels)
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups


def test_an_unknown_norm_is_named_with_the_choices():
    with pytest.raises(ValueError, match="'LN'.*'FrozenBN', 'BN', 'GN'"):
        make_norm("LN", 8)  # type: ignore[arg-type]
