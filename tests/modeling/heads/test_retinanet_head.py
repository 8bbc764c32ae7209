import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detkit.modeling.heads import RetinaNetHead


def make_head(**options):
    defaults = {"in_channels": 8, "num_anchors": 3, "num_logits": 5, "prior_bias": [-2.0] * 5}
    return RetinaNetHead(**{**defaults, **options})


@pytest.fixture
def features():
    return [torch.randn(2, 8, *size) for size in ((4, 6), (2, 3), (1, 1))]


def test_outputs_are_per_level_and_anchor(features):
    logits, deltas = make_head()(features)
    assert [x.shape for x in logits] == [(2, 72, 5), (2, 18, 5), (2, 3, 5)]
    assert [x.shape for x in deltas] == [(2, 72, 4), (2, 18, 4), (2, 3, 4)]


def test_the_channel_of_anchor_a_and_class_k_is_a_times_k_plus_k(features):
    head = make_head()
    for layer in (head.cls_score, head.bbox_pred):
        nn.init.zeros_(layer.weight)
        layer.bias.data.copy_(torch.arange(len(layer.bias)))
    logits, deltas = head(features)
    for level, x in zip(logits, features, strict=True):
        per_cell = level.reshape(2, x.shape[2] * x.shape[3], 3, 5)
        assert torch.equal(per_cell, torch.arange(15.0).reshape(3, 5).expand_as(per_cell))
    assert torch.equal(deltas[2][0], torch.arange(12.0).reshape(3, 4))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_positions_run_row_major(memory_format):
    head = make_head(in_channels=1, num_anchors=1, num_logits=1, num_convs=0, prior_bias=None)
    nn.init.zeros_(head.cls_score.weight)
    head.cls_score.weight.data[0, 0, 1, 1] = 1  # the identity
    image = torch.arange(12.0).reshape(1, 1, 3, 4).contiguous(memory_format=memory_format)
    logits, _ = head([image])
    assert torch.equal(logits[0].flatten(), torch.arange(12.0))


def test_each_subnet_is_its_convolutions_with_relu_shared_over_levels(features):
    head = make_head(num_convs=2, channels=6).double()
    w = dict(head.named_parameters())
    logits, deltas = head([x.double() for x in features])
    for level, x in enumerate(features):
        for subnet, last, actual in (("cls_subnet", "cls_score", logits), ("bbox_subnet", "bbox_pred", deltas)):
            y = x.double()
            for i in (0, 2):
                y = F.conv2d(y, w[f"{subnet}.{i}.weight"], w[f"{subnet}.{i}.bias"], padding=1).clamp(min=0)
            y = F.conv2d(y, w[f"{last}.weight"], w[f"{last}.bias"], padding=1)
            expected = y.permute(0, 2, 3, 1).reshape(actual[level].shape)
            torch.testing.assert_close(actual[level], expected)


def test_weights_start_normal_with_deviation_a_hundredth_and_biases_at_zero_but_the_prior():
    torch.manual_seed(0)
    head = make_head(in_channels=64, prior_bias=[-4.59512] * 5)
    for name, conv in head.named_modules():
        if isinstance(conv, nn.Conv2d):
            assert conv.weight.std().item() == pytest.approx(0.01, rel=0.05), name
            assert abs(conv.weight.mean().item()) < 1e-3, name
            assert torch.equal(conv.bias, torch.full_like(conv.bias, -4.59512 if name == "cls_score" else 0)), name


def test_the_prior_biases_are_those_of_every_anchor(features):
    head = make_head(prior_bias=[0.5, -1, -2, -3, -4])
    nn.init.zeros_(head.cls_score.weight)
    expected = torch.tensor([0.5, -1, -2, -3, -4])
    assert all(torch.equal(level, expected.expand_as(level)) for level in head(features)[0])


def test_a_prior_of_another_number_of_logits_is_refused():
    with pytest.raises(ValueError, match="prior_bias has 1 values for the 5 logits"):
        make_head(prior_bias=[-2.0])


@pytest.mark.parametrize("options", [{"num_convs": -1}, {"channels": 0}, {"channels": -8}])
def test_impossible_counts_are_refused_by_name(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"RetinaNetHead: {name} {value} is below"):
        make_head(**options)


def test_the_prior_may_be_switched_off():
    assert not make_head(prior_bias=None).cls_score.bias.any()


def test_four_convolutions_of_the_width_of_the_features_by_default():
    convs = [m for m in make_head().cls_subnet if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size) for c in convs] == [(8, 8, (3, 3))] * 4


def test_group_norm_comes_before_each_relu_and_shifts_the_names():
    head = make_head(norm="GN", num_convs=2)
    assert [type(m) for m in head.cls_subnet] == [nn.Conv2d, nn.GroupNorm, nn.ReLU] * 2


def test_group_norm_treats_levels_by_themselves(features):
    head = make_head(norm="GN")
    together, alone = head(features)[0], [head([x])[0][0] for x in features]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b)


def test_batch_norm_shared_over_levels_is_refused():
    with pytest.raises(ValueError, match="norm 'BN' is neither '' nor 'GN'"):
        make_head(norm="BN")


def test_the_losses_of_one_subnet_do_not_reach_the_other(features):
    head = make_head(num_convs=1)
    sum(x.sum() for x in head(features)[0]).backward()
    assert all(p.grad is not None for p in head.cls_subnet.parameters())
    assert all(p.grad is None for p in [*head.bbox_subnet.parameters(), *head.bbox_pred.parameters()])


def test_without_convolutions_the_last_layers_read_the_features(features):
    head = make_head(num_convs=0, channels=32)
    assert head.cls_score.in_channels == 8
    assert math.isfinite(head(features)[0][0].sum().item())
