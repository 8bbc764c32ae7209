"""The example project: found by --projects, configured by its options, equal to its formula."""

from pathlib import Path

import pytest
import torch

from detkit.config import get_cfg
from detkit.engine import import_projects
from detkit.modeling.losses import SigmoidFocalLoss
from detkit.registry import CLS_LOSSES

import_projects([Path(__file__).parents[1]])


def build(**options):
    return CLS_LOSSES.slot("PolyFocalLoss", **options)()


def inputs():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 30, 3, generator=generator, dtype=torch.float64) * 3
    return logits, torch.randint(-1, 4, (2, 30), generator=generator)


def test_epsilon_zero_is_the_focal_loss():
    for reduction in ("sum", "anchor", "none"):
        got = build(epsilon=0.0)(*inputs(), reduction)
        torch.testing.assert_close(got.double(), SigmoidFocalLoss()(*inputs(), reduction).double())


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (None, 0.5)])
def test_the_formula(alpha, gamma):
    logits, labels = inputs()
    p = logits.sigmoid()
    own = torch.nn.functional.one_hot(labels.clamp(min=0), 4)[..., :3].bool()
    p_t = torch.where(own, p, 1 - p)
    weight = 1.0 if alpha is None else torch.where(own, alpha, 1 - alpha)
    want = weight * (-((1 - p_t) ** gamma) * p_t.log() - 0.5 * (1 - p_t) ** (gamma + 1))
    want = (want * (labels >= 0)[..., None]).sum(-1)
    loss = build(alpha=alpha, gamma=gamma, epsilon=-0.5)
    torch.testing.assert_close(loss(logits, labels, "anchor").double(), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss(logits, labels, "none").double().sum(-1), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss(logits, labels, "sum").double(), want.sum(), rtol=1e-5, atol=1e-5)


def test_gradient_is_finite_for_extreme_logits():
    logits = torch.tensor([[[1e4, -1e4, 30.0]]], requires_grad=True)
    build(gamma=0.1)(logits, torch.tensor([[1]]), "sum").backward()
    assert torch.isfinite(logits.grad).all()


def test_options_reach_the_loss_and_bad_ones_are_refused():
    cfg = get_cfg()
    cfg.merge_from_file(Path(__file__).parents[1] / "configs" / "quickstart_poly.yaml")
    assert CLS_LOSSES.build(cfg.MODEL.CLS_LOSS).epsilon == -1.0
    with pytest.raises(ValueError, match="epsilon -2 is below -1"):
        build(epsilon=-2)
