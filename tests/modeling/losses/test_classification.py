import math

import pytest
import torch
from torch.nn import functional as F

from detkit.modeling.losses import BalancedCrossEntropy, FocalLossStar, HingeLoss, SigmoidFocalLoss

K = 4


@pytest.fixture
def logits():
    return torch.randn(2, 7, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def labels():
    return torch.tensor([[0, 1, 2, 3, 4, -1, 4], [4, 4, -1, -1, 2, 2, 0]])


def naive(logits, labels, alpha, gamma):
    """Equation 5 anchor by anchor and class by class."""
    losses = torch.zeros(labels.shape, dtype=logits.dtype)
    for index in ((n, r) for n in range(2) for r in range(7) if labels[n, r] >= 0):
        for k in range(K):
            p = 1 / (1 + torch.exp(-logits[index][k]))
            p_t, a_t = (p, alpha) if labels[index] == k else (1 - p, 1 - alpha)
            losses[index] += -a_t * (1 - p_t) ** gamma * torch.log(p_t)
    return losses


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.75, 0.5)])
def test_it_is_the_focal_loss_of_the_paper(logits, labels, alpha, gamma):
    loss = SigmoidFocalLoss(alpha=alpha, gamma=gamma)
    expected = naive(logits, labels, alpha, gamma)
    torch.testing.assert_close(loss(logits, labels, "anchor").double(), expected)
    torch.testing.assert_close(loss(logits, labels, "sum").double(), expected.sum())


def test_the_defaults_are_alpha_a_quarter_and_gamma_two(logits, labels):
    expected = SigmoidFocalLoss(alpha=0.25, gamma=2.0)(logits, labels, "sum")
    assert torch.equal(SigmoidFocalLoss()(logits, labels, "sum"), expected)


def test_gamma_zero_without_alpha_is_binary_cross_entropy(logits, labels):
    counted = labels >= 0
    targets = F.one_hot(labels.clamp(min=0), K + 1)[..., :K].double()
    expected = F.binary_cross_entropy_with_logits(logits[counted], targets[counted], reduction="sum")
    torch.testing.assert_close(SigmoidFocalLoss(alpha=None, gamma=0.0)(logits, labels, "sum").double(), expected)


def x_t(logits, labels):
    """The logit of an anchor's own class, minus the logit of the others."""
    side = 2 * F.one_hot(labels.clamp(min=0), K + 1)[..., :K] - 1
    return side * logits


def weights(labels, alpha):
    own = F.one_hot(labels.clamp(min=0), K + 1)[..., :K].double()
    return 1.0 if alpha is None else own * alpha + (1 - own) * (1 - alpha)


SHAPES = {  # by their formulas
    "eq. 3": (BalancedCrossEntropy(alpha=0.9), 0.9, lambda x: -F.logsigmoid(x)),
    "plain cross entropy": (BalancedCrossEntropy(alpha=None), None, lambda x: -F.logsigmoid(x)),
    "appendix A": (FocalLossStar(alpha=0.3, gamma=3.0, beta=0.5), 0.3, lambda x: -F.logsigmoid(3 * x + 0.5) / 3),
    "section 5.1": (HingeLoss(margin=0.6), None, lambda x: (0.6 - x.sigmoid()).clamp(min=0)),
}


@pytest.mark.parametrize(("loss", "alpha", "formula"), SHAPES.values(), ids=SHAPES)
def test_the_other_losses_of_the_paper(logits, labels, loss, alpha, formula):
    each = weights(labels, alpha) * formula(x_t(logits, labels)) * (labels >= 0)[..., None]
    torch.testing.assert_close(loss(logits, labels, "anchor").double(), each.sum(-1))
    torch.testing.assert_close(loss(logits, labels, "sum").double(), each.sum())


def test_defaults_are_rows_of_the_paper():
    assert BalancedCrossEntropy().alpha == 0.75  # the best of Table 1a
    star = FocalLossStar()
    assert (star.alpha, star.gamma, star.beta) == (0.25, 2.0, 1.0)  # the first of two in Table 3


def test_there_is_a_logit_per_class_and_none_for_background():
    assert SigmoidFocalLoss().num_channels(80) == 80


@pytest.mark.parametrize("prior", [0.01, 0.5, 0.9])
def test_the_prior_bias_scores_the_prior(prior):
    biases = SigmoidFocalLoss().prior_bias(prior, K)
    assert SigmoidFocalLoss().scores(torch.tensor([[biases]])).flatten().tolist() == pytest.approx([prior] * K)


def test_the_bias_of_one_in_a_hundred():
    assert SigmoidFocalLoss().prior_bias(0.01, 2) == pytest.approx([-4.59512] * 2, abs=1e-5)


def test_scores_of_half_logits_are_float32():
    scores = SigmoidFocalLoss().scores(torch.tensor([[[-5.0, 0, 5]]], dtype=torch.bfloat16))
    assert scores.dtype == torch.float32
    assert scores[0, 0].tolist() == pytest.approx([1 / (1 + math.exp(5)), 0.5, 1 / (1 + math.exp(-5))])


IMPOSSIBLE = [
    (SigmoidFocalLoss, {"alpha": 1.5}),
    (SigmoidFocalLoss, {"alpha": -1.0}),
    (SigmoidFocalLoss, {"gamma": -0.1}),
    (BalancedCrossEntropy, {"alpha": 2.0}),
    (SigmoidFocalLoss, {"gamma": 1e7}),
    (FocalLossStar, {"gamma": 0.0}),
    (FocalLossStar, {"gamma": 1e-9}),
    (FocalLossStar, {"beta": -1e7}),
    (HingeLoss, {"margin": 0.0}),
    (HingeLoss, {"margin": 1.1}),
]


@pytest.mark.parametrize(("loss", "options"), IMPOSSIBLE, ids=str)
def test_impossible_options_are_refused_by_name(loss, options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{loss.__name__}: {name} {value} is not"):
        loss(**options)


@pytest.mark.parametrize("prior", [0.0, 1.0])
def test_an_impossible_prior_is_refused(prior):
    with pytest.raises(ValueError, match="not between 0 and 1"):
        SigmoidFocalLoss().prior_bias(prior, K)
