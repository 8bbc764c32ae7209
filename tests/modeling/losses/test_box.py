import pytest
import torch

from detkit.modeling.box_coder import BoxCoder
from detkit.modeling.losses import GIoU, SmoothL1

ANCHOR = torch.tensor([[0.0, 0, 10, 10]])


def toward(*deltas):
    """The ground truth at these deltas from ANCHOR."""
    return BoxCoder().decode(torch.tensor([deltas]), ANCHOR)


def test_smooth_l1_is_a_square_below_beta_and_a_line_above_summed_over_coordinates():
    loss = SmoothL1(beta=0.1)(torch.zeros(1, 4), ANCHOR, toward(0.05, -0.05, 0.3, -0.2), BoxCoder())
    expected = 2 * 0.5 * 0.05**2 / 0.1 + (0.3 - 0.05) + (0.2 - 0.05)
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_default_beta_is_detectrons():
    loss = SmoothL1()(torch.tensor([[0.11, 0, 0, 0]]), ANCHOR, ANCHOR, BoxCoder())
    assert loss.item() == pytest.approx(0.055)


def test_beta_zero_is_l1_with_gradient_of_sign_everywhere():
    deltas = torch.tensor([[1e-4, -1e-4, 2.0, 0.0]], requires_grad=True)
    loss = SmoothL1(beta=0.0)(deltas, ANCHOR, ANCHOR, BoxCoder())
    loss.sum().backward()
    assert loss.item() == pytest.approx(2.0002)
    assert deltas.grad is not None
    assert deltas.grad.tolist() == [[1, -1, 1, 0]]


def test_a_negative_beta_is_refused():
    with pytest.raises(ValueError, match="beta -1"):
        SmoothL1(beta=-1)


@pytest.mark.parametrize(
    ("deltas", "expected"), [((0, 0, 0, 0), 0.0), ((0.5, 0, 0, 0), 1 - 1 / 3), ((3, 0, 0, 0), 1.5)]
)
def test_giou_of_equal_half_covered_and_disjoint_squares(deltas, expected):
    # Shifted by a half: overlap 50, union 150, hull 150. By three sides: no overlap, union 200, hull 400.
    assert GIoU()(torch.zeros(1, 4), ANCHOR, toward(*deltas), BoxCoder()).item() == pytest.approx(expected, abs=1e-5)


def test_giou_lies_between_0_and_2_and_is_invariant_to_scale():
    generator = torch.Generator().manual_seed(0)
    deltas, target = torch.randn(2, 100, 4, generator=generator, dtype=torch.float64).unbind()
    anchors = ANCHOR.double().expand(100, 4)
    boxes = BoxCoder().decode(target, anchors)
    loss = GIoU()(deltas, anchors, boxes, BoxCoder())
    assert ((loss >= 0) & (loss <= 2)).all()
    torch.testing.assert_close(GIoU()(deltas, anchors * 100, boxes * 100, BoxCoder()), loss)


def test_giou_pulls_a_disjoint_box_toward_its_target():
    deltas = torch.tensor([[2.0, -3, 0, 0]], requires_grad=True)
    GIoU()(deltas, ANCHOR, ANCHOR, BoxCoder()).sum().backward()
    assert deltas.grad[0, 0] > 0 > deltas.grad[0, 1]


@pytest.mark.parametrize("loss", [SmoothL1(), SmoothL1(beta=0.0), GIoU()])
def test_gradients_are_those_of_finite_differences(loss):
    deltas = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    anchors = ANCHOR.double().expand(5, 4)
    target = toward(0.5, -0.1, 0.3, 0.2).double().expand(5, 4)
    assert torch.autograd.gradcheck(lambda d: loss(d, anchors, target, BoxCoder()), (deltas,))


@pytest.mark.parametrize("loss", [SmoothL1(), GIoU()])
def test_no_boxes_any_leading_shape_and_half_precision(loss):
    assert loss(torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, 4), BoxCoder()).shape == (0,)
    many = loss(torch.zeros(2, 3, 4, dtype=torch.bfloat16), ANCHOR.expand(2, 3, 4), ANCHOR.expand(2, 3, 4), BoxCoder())
    assert many.shape == (2, 3)
    assert many.dtype == torch.float32


def test_giou_is_finite_for_boxes_without_area():
    deltas = torch.tensor([[0, 0, -200.0, -200]], requires_grad=True)
    point = torch.tensor([[5.0, 5, 5, 5]])
    loss = GIoU()(deltas, ANCHOR, point, BoxCoder())
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert deltas.grad is not None
    assert torch.isfinite(deltas.grad).all()
