from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import fvcore.nn
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detkit import ops

GAMMAS = [0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
EXTREMES = [0.0, 1e-3, 1.0, 17.0, 40.0, 90.0, 200.0, 1e3, 1e4]
REDUCTIONS = ["sum", "anchor", "none"]
CHUNK = 1024  # logits that the kernels take at a time


@dataclass(frozen=True)
class Loss:
    """One of the losses, with the parameters of its shape in the order of the schema."""

    name: str
    parameters: dict[str, float]
    alpha: float | None = 0.25

    def __call__(self, logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
        run: Callable = getattr(ops, self.name)
        return run(logits, labels, **{"alpha": self.alpha, **self.parameters, **options})

    @property
    def schema(self) -> Callable:
        return getattr(torch.ops.detkit, self.name)

    @property
    def backward(self) -> Callable:
        return getattr(torch.ops.detkit, f"_{self.name}_backward")

    @property
    def with_gradient(self) -> Callable:
        return getattr(torch.ops.detkit, f"_{self.name}_with_gradient")


LOSSES = [
    Loss("sigmoid_focal_loss", {"gamma": 2.0}),
    Loss("sigmoid_focal_loss", {"gamma": 0.5}),
    Loss("sigmoid_focal_loss_star", {"gamma": 2.0, "beta": 1.0}),
    Loss("sigmoid_hinge_loss", {"margin": 0.75}),
]
# One of each name, where the parameters do not matter.
each_loss = pytest.mark.parametrize("loss", [LOSSES[0], *LOSSES[2:]], ids=lambda loss: loss.name)


@pytest.fixture(scope="module", params=LOSSES, ids=lambda loss: f"{loss.name}-{loss.parameters}")
def loss(request) -> Loss:
    return request.param


def some_labels(rows: int, classes: int, device: str) -> Tensor:
    """All kinds of labels in turn: ignored, the classes, background."""
    return (torch.arange(rows, device=device) % (classes + 2)) - 1


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return (labels[..., None] == torch.arange(classes, device=labels.device)).double()


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0]


# ---------------------------------------------------------------------------------------------------------------------
# Known values
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [Loss("sigmoid_focal_loss", {"gamma": 0.0}), Loss("sigmoid_focal_loss_star", {"gamma": 1.0, "beta": 0.0})],
    ids=lambda loss: loss.name,
)
def test_cross_entropy_is_a_special_case(device, loss):
    logits = (torch.randn(7, 5, device=device, dtype=torch.float64) * 5).requires_grad_()
    labels = torch.arange(7, device=device) % 6
    expected = F.binary_cross_entropy_with_logits(logits, one_hot(labels, 5), reduction="sum")
    got = loss(logits, labels, alpha=None)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradient(got, logits), gradient(expected, logits))


@pytest.mark.parametrize("margin", [0.1, 0.5, 1.0])
def test_hinge_is_what_the_probability_lacks(device, margin):
    logits = torch.randn(50, 5, device=device, dtype=torch.float64).mul(3).requires_grad_()
    labels = some_labels(50, 5, device)
    at_label = one_hot(labels, 5)
    p = torch.sigmoid(logits)
    each = (margin - (p * at_label + (1 - p) * (1 - at_label))).clamp(min=0) * (labels >= 0)[:, None]
    got = ops.sigmoid_hinge_loss(logits, labels, margin=margin)
    torch.testing.assert_close(got, each.sum())
    torch.testing.assert_close(gradient(got, logits), gradient(each, logits))


def test_hinge_has_no_slope_at_its_margin(device):
    logits = torch.zeros(3, 2, device=device, requires_grad=True)  # p_t = 0.5
    labels = torch.tensor([0, 1, 2], device=device)
    assert (gradient(ops.sigmoid_hinge_loss(logits, labels, margin=0.5), logits) == 0).all()
    assert (gradient(ops.sigmoid_hinge_loss(logits, labels, margin=0.75), logits).abs() == 0.25).all()


@pytest.mark.parametrize(("gamma", "beta"), [(2.0, 1.0), (4.0, 0.0), (0.5, -2.0)])
def test_focal_loss_star_is_cross_entropy_of_a_line(device, gamma, beta):
    logits = torch.randn(50, 5, device=device, dtype=torch.float64).mul(3).requires_grad_()
    labels = some_labels(50, 5, device)
    side = 2 * one_hot(labels, 5) - 1
    each = F.softplus(-(gamma * side * logits + beta)) / gamma * (labels >= 0)[:, None]
    got = ops.sigmoid_focal_loss_star(logits, labels, alpha=None, gamma=gamma, beta=beta)
    torch.testing.assert_close(got, each.sum())
    torch.testing.assert_close(gradient(got, logits), gradient(each, logits))


def test_alpha_weighs_the_class_and_its_complement_the_rest(device, loss):
    logits, labels = torch.randn(12, 4, device=device), some_labels(12, 4, device)
    plain = loss(logits, labels, alpha=None, reduction="none")
    weight = torch.where(one_hot(labels, 4).bool(), 0.3, 0.7)
    torch.testing.assert_close(loss(logits, labels, alpha=0.3, reduction="none"), plain * weight)


def test_defaults_are_those_of_the_paper():
    logits, labels = torch.randn(12, 4), some_labels(12, 4, "cpu")
    for loss, alpha, parameters in (
        (ops.sigmoid_focal_loss, 0.25, {"gamma": 2.0}),
        (ops.sigmoid_focal_loss_star, 0.25, {"gamma": 2.0, "beta": 1.0}),
        (ops.sigmoid_hinge_loss, None, {"margin": 0.5}),
    ):
        assert loss(logits, labels) == loss(logits, labels, alpha=alpha, reduction="sum", **parameters)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_focal_loss_equals_fvcore_at_moderate_logits(device, gamma, alpha):
    logits = (torch.randn(40, 6, device=device) * 2).clamp(-5, 5).requires_grad_()  # fvcore's float32 loses beyond
    labels = some_labels(40, 6, device)
    other = logits[labels >= 0]
    expected = fvcore.nn.sigmoid_focal_loss(
        other,
        one_hot(labels[labels >= 0], 6).float(),
        alpha=-1 if alpha is None else alpha,
        gamma=gamma,
        reduction="sum",
    )
    got = ops.sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(gradient(got, logits), gradient(expected, logits), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        *(Loss("sigmoid_focal_loss", {"gamma": gamma}) for gamma in GAMMAS),
        *(Loss("sigmoid_focal_loss_star", {"gamma": g, "beta": b}) for g, b in ((2.0, 1.0), (0.5, -3.0), (4.0, 30.0))),
        *(Loss("sigmoid_hinge_loss", {"margin": margin}) for margin in (0.25, 0.7, 1.0)),
    ],
    ids=lambda loss: f"{loss.name}-{loss.parameters}",
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-4)])
def test_value_and_gradient_are_right_up_to_extreme_logits(device, loss, dtype, tolerance, exact):
    values = torch.tensor([s * v for v in EXTREMES for s in (1, -1)], dtype=dtype, device=device)
    logits = values.repeat(2)[:, None].requires_grad_()
    labels = torch.tensor([0] * len(values) + [1] * len(values), device=device)  # the class; background
    got = loss(logits, labels, reduction="anchor")
    slope = gradient(got, logits)[:, 0]
    limits = torch.finfo(dtype)
    absolute = 2 * limits.eps if "margin" in loss.parameters else limits.tiny  # a hinge subtracts probabilities
    rows = zip(logits[:, 0].tolist(), labels.tolist(), got.tolist(), slope.tolist(), strict=True)
    for x, label, got_loss, got_slope in rows:
        side, weight = (1, 0.25) if label == 0 else (-1, 0.75)
        value, derivative = exact(loss.name.removeprefix("sigmoid_"), side * x, *loss.parameters.values())
        assert math.isclose(got_loss, float(weight * value), rel_tol=tolerance, abs_tol=absolute), (x, label)
        want = float(side * weight * derivative)
        assert math.isclose(got_slope, want, rel_tol=tolerance, abs_tol=max(absolute, 1e-15)), (x, label)


def test_nan_logit_that_counts_shows(device, loss):
    logits, labels = torch.randn(40, 30, device=device), some_labels(40, 30, device)
    logits[17, 11] = math.nan  # of a positive row, beside its label
    logits.requires_grad_()
    each = loss(logits, labels, reduction="none")
    assert each.isnan().nonzero().tolist() == [[17, 11]]
    assert loss(logits, labels, reduction="anchor").isnan().nonzero().tolist() == [[17]]
    assert loss(logits, labels).isnan()
    assert gradient(each, logits).isnan().nonzero().tolist() == [[17, 11]]


def test_infinite_logits_give_the_limits(device, loss):
    logits = torch.tensor([[math.inf], [-math.inf]], device=device, requires_grad=True)
    right, wrong = torch.tensor([0, 1], device=device), torch.tensor([1, 0], device=device)
    assert loss(logits, right).item() == 0
    most = loss.parameters.get("margin", math.inf)
    assert loss(logits, wrong, alpha=None, reduction="anchor").tolist() == [most, most]


# ---------------------------------------------------------------------------------------------------------------------
# Gradients and reductions
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(device, reduction, loss):
    torch.manual_seed(0)
    logits = torch.randn(9, 3, device=device, dtype=torch.float64, requires_grad=True)
    labels = some_labels(9, 3, device)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels, reduction=reduction), logits, fast_mode=False)


@given(rows=st.integers(0, 600), classes=st.integers(0, 9), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_reductions_agree(device, loss, rows, classes, seed):
    torch.manual_seed(seed)
    logits = torch.randn(rows, classes, dtype=torch.float64).to(device)
    labels = torch.randint(-1, classes + 1, (rows,)).to(device)
    each, anchors, total = (loss(logits, labels, reduction=r) for r in ("none", "anchor", "sum"))
    assert each.shape == logits.shape
    assert anchors.shape == labels.shape
    torch.testing.assert_close(anchors, each.sum(-1))
    torch.testing.assert_close(total, each.sum())


@pytest.mark.parametrize("classes", [1, 3, 80, CHUNK - 1, CHUNK, CHUNK + 1, 3000])
def test_a_row_does_not_depend_on_its_neighbours(device, loss, classes):
    """Rows together, in whole chunks and over their ends, equal the rows one by one."""
    rows = 5 if classes > 100 else 2 * CHUNK // classes + 3
    logits = torch.randn(rows, classes, device=device).requires_grad_()
    some = torch.linspace(0, rows - 1, 7).long().unique().tolist()
    for labels in kinds_of_labels(rows, classes, device):
        for reduction in REDUCTIONS:
            together = loss(logits, labels, reduction=reduction)
            slope = gradient(together, logits)
            for r in some:
                alone = loss(logits[r : r + 1], labels[r : r + 1], reduction=reduction)
                torch.testing.assert_close(gradient(alone, logits)[r], slope[r])
                if reduction != "sum":
                    torch.testing.assert_close(alone[0], together[r])
        anchors = loss(logits, labels, reduction="anchor")
        torch.testing.assert_close(loss(logits, labels), anchors.sum())
        torch.testing.assert_close(anchors, loss(logits, labels, reduction="none").sum(-1))


def kinds_of_labels(rows: int, classes: int, device: str) -> list[Tensor]:
    """Labels in every part of a row, all of the first class, all background, all ignored, and all kinds in turn."""
    same = [torch.full((rows,), label, device=device) for label in (0, classes, -1)]
    return [torch.linspace(0, classes - 1, rows, device=device).long(), *same, some_labels(rows, classes, device)]


def test_gradient_of_each_reduction_follows_the_incoming_gradient(device, loss):
    logits = torch.randn(3, 5, 4, device=device, dtype=torch.float64, requires_grad=True)
    labels = some_labels(15, 4, device).reshape(3, 5)
    each = gradient(loss(logits, labels), logits)
    per_anchor, per_element = torch.randn(3, 5, device=device), torch.randn(3, 5, 4, device=device)
    got = gradient(loss(logits, labels, reduction="anchor") * per_anchor, logits)
    torch.testing.assert_close(got, each * per_anchor[..., None])
    got = gradient(loss(logits, labels, reduction="none") * per_element, logits)
    torch.testing.assert_close(got, each * per_element)
    torch.testing.assert_close(gradient(3 * loss(logits, labels), logits), 3 * each)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_sum_may_be_differentiated_again(device, loss, dtype):
    logits = torch.randn(300, 7, device=device).to(dtype).requires_grad_()
    labels = some_labels(300, 7, device)
    total = loss(logits, labels)
    torch.testing.assert_close(total.detach(), loss(logits.detach(), labels))
    expected = gradient(loss(logits, labels, reduction="anchor"), logits)
    for factor in (1, 2, -0.5):  # the graph is kept, for another factor
        torch.testing.assert_close(gradient(factor * total, logits), factor * expected)
    twice = loss(logits, labels) + loss(logits, labels)
    torch.testing.assert_close(gradient(twice, logits), 2 * expected)


def test_gradients_may_come_in_batches(device, loss):
    logits = torch.randn(20, 3, device=device, requires_grad=True)
    total = loss(logits, some_labels(20, 3, device))
    factors = torch.tensor([1.0, -2.0, 0.5], device=device)
    (each,) = torch.autograd.grad(total, logits, factors, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(each, factors[:, None, None] * gradient(total, logits))


def test_forward_mode_is_refused(device, loss):
    logits, labels = torch.randn(4, 3, device=device), some_labels(4, 3, device)
    for reduction in REDUCTIONS:
        with pytest.raises(RuntimeError, match=f"^{loss.name} has no derivative in forward mode"):
            torch.func.jvp(lambda x, r=reduction: loss(x, labels, reduction=r), (logits,), (logits,))
    with torch.autograd.forward_ad.dual_level():
        loss(logits, labels)  # no tangent: nothing is lost


@pytest.mark.parametrize("logits", [[[1.0]], None, np.zeros((1, 1), np.float32)])
def test_what_is_no_tensor_is_named(logits):
    with pytest.raises(TypeError, match=r"logits must be a torch\.Tensor, not"):
        ops.sigmoid_focal_loss(logits, torch.zeros(1, dtype=torch.int64))


def test_sparse_logits_are_named(device):
    with pytest.raises(ValueError, match="logits must be dense"):
        ops.sigmoid_focal_loss(
            torch.eye(2, device=device).to_sparse(), torch.zeros(2, dtype=torch.int64, device=device)
        )


def test_arithmetic_elsewhere_keeps_its_small_numbers(device, loss):
    logits = torch.full((3000, 80), 40.0, device=device, requires_grad=True)  # whose loss flushes them to 0
    gradient(loss(logits, torch.zeros(3000, dtype=torch.int64, device=device)), logits)
    small = torch.full((100_000,), 2.0**-140, device=device)
    assert (small * 2 == 2.0**-139).all()


def test_no_gradient_where_none_is_asked(device, loss):
    assert not loss(torch.randn(2, 3, device=device), some_labels(2, 3, device)).requires_grad


@each_loss
def test_second_derivative_is_refused(device, loss):
    logits = torch.randn(3, 2, device=device, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(logits, some_labels(3, 2, device)), logits, create_graph=True)
    with pytest.raises(RuntimeError, match=f"^{loss.name} can be differentiated once only"):
        slope.sum().backward()


# ---------------------------------------------------------------------------------------------------------------------
# What the inputs may be
# ---------------------------------------------------------------------------------------------------------------------


def test_ignored_rows_count_for_nothing_whatever_they_hold(device, loss):
    logits = torch.randn(6, 3, device=device)
    labels = torch.tensor([0, -1, 3, -1, 2, 1], device=device)
    logits[1], logits[3] = math.nan, math.inf
    logits.requires_grad_()
    cleaned = logits.detach().nan_to_num(0, 0).requires_grad_()
    for reduction in REDUCTIONS:
        got, want = loss(logits, labels, reduction=reduction), loss(cleaned, labels, reduction=reduction)
        assert torch.equal(got, want)
        assert torch.equal(gradient(got, logits), gradient(want, cleaned))
        assert (gradient(got, logits)[[1, 3]] == 0).all()
    assert (loss(logits, labels, reduction="anchor")[[1, 3]] == 0).all()


@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_ignored_rows_have_no_gradient_whatever_comes_in(device, loss, factor):
    logits = torch.randn(6, 3, device=device, requires_grad=True)
    labels = torch.tensor([0, -1, 3, -1, 2, 1], device=device)
    for reduction in REDUCTIONS:
        slope = gradient(factor * loss(logits, labels, reduction=reduction), logits)
        assert (slope[[1, 3]] == 0).all()
        assert not torch.isfinite(slope[0, 0])


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0,), (2, 0, 5)])
def test_nothing_to_sum_is_zero_with_a_graph(device, shape, loss):
    logits = torch.zeros(shape, device=device, requires_grad=True)
    labels = torch.zeros(shape[:-1], device=device, dtype=torch.int64)
    total = loss(logits, labels)
    assert total.item() == 0
    assert gradient(total, logits).shape == shape


def test_a_vector_of_logits_is_one_anchor(device, loss):
    logits = torch.randn(4, device=device)
    total = loss(logits, torch.tensor(2, device=device), reduction="anchor")
    assert total.shape == ()
    torch.testing.assert_close(total, loss(logits[None], torch.tensor([2], device=device)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_are_computed_in_float32(device, dtype, loss):
    logits = (torch.randn(50, 7, device=device) * 6).to(dtype).requires_grad_()
    wide = logits.detach().float().requires_grad_()
    labels = some_labels(50, 7, device)
    for reduction in REDUCTIONS:
        got, expected = (loss(x, labels, reduction=reduction) for x in (logits, wide))
        assert got.dtype == (dtype if reduction == "none" else torch.float32)
        torch.testing.assert_close(got, expected.to(got.dtype))
        assert gradient(got, logits).dtype == dtype
        torch.testing.assert_close(gradient(got, logits), gradient(expected, wide).to(dtype))


def test_label_types_are_equal(device, loss):
    logits = torch.randn(30, 4, device=device)
    labels = torch.arange(30, device=device) % 5
    expected = loss(logits, labels)
    assert torch.equal(loss(logits, labels.int()), expected)
    assert torch.equal(loss(logits, labels.to(torch.uint8)), expected)


def test_layout_of_the_inputs_does_not_matter(device, loss):
    logits = torch.randn(4, 6, 5, device=device)
    labels = some_labels(24, 4, device).reshape(6, 4)[:, :1].expand(6, 5)
    turned = logits.permute(1, 2, 0).requires_grad_()  # [6, 5, 4] -> rows of 4 classes
    plain = turned.detach().contiguous().requires_grad_()
    got, expected = loss(turned, labels), loss(plain, labels.contiguous())
    assert torch.equal(got, expected)
    assert torch.equal(gradient(got, turned), gradient(expected, plain))


@each_loss
@pytest.mark.parametrize("wrong", [-2, 4, 255, -(2**40)])
def test_label_out_of_range_is_named_or_background(device, sees_values, loss, wrong):
    labels = torch.tensor([0, 3, wrong, 1], device=device)
    if not sees_values:
        background = torch.tensor([0, 3, 3, 1], device=device)
        logits = torch.randn(4, 3, device=device)
        assert torch.equal(*(loss(logits, given, reduction="none") for given in (labels, background)))
        return
    with pytest.raises(RuntimeError, match=rf"{loss.name}: the label {wrong} is not in -1\.\.3"):
        loss(torch.zeros(4, 3), labels)


@each_loss
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"logits": torch.zeros(4, 3, dtype=torch.int64)}, "logits must be float32"),
        ({"labels": torch.zeros(4)}, "labels must be class indices as int64, int32 or uint8"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels \(3,\) must have the shape of logits \(4, 3\)"),
        ({"logits": torch.tensor(1.0)}, "must have the shape"),
        ({"labels": torch.zeros(4, dtype=torch.int64, device="meta")}, "labels are on meta"),
        ({"alpha": 1.5}, r"alpha must be None \(no weights\) or in \[0, 1\], not 1.5"),
        ({"alpha": math.nan}, "alpha must be"),
        ({"reduction": "mean"}, "reduction must be one of"),
    ],
)
def test_wrong_arguments_are_named(loss, change, text):
    arguments = {"logits": torch.zeros(4, 3), "labels": torch.zeros(4, dtype=torch.int64), **change}
    with pytest.raises(ValueError, match=text):
        loss(arguments.pop("logits"), arguments.pop("labels"), **arguments)


@pytest.mark.parametrize(
    ("loss", "change", "text"),
    [
        (ops.sigmoid_focal_loss, {"gamma": -0.1}, r"gamma must be in \[0, 1e\+06\], not -0.1"),
        (ops.sigmoid_focal_loss, {"gamma": math.inf}, r"gamma must be in \[0, 1e\+06\]"),
        (ops.sigmoid_focal_loss_star, {"gamma": 0.0}, r"gamma must be in \[1e-06, 1e\+06\], not 0.0"),
        (ops.sigmoid_focal_loss_star, {"gamma": math.nan}, "gamma must be in"),
        (ops.sigmoid_focal_loss_star, {"beta": -math.inf}, "beta must be in .*, not -inf"),
        (ops.sigmoid_hinge_loss, {"margin": 0.0}, r"margin must be in \(0, 1\], not 0.0"),
        (ops.sigmoid_hinge_loss, {"margin": 1.01}, "margin must be"),
        (ops.sigmoid_hinge_loss, {"margin": math.nan}, "margin must be"),
    ],
)
def test_wrong_parameters_are_named(loss, change, text):
    with pytest.raises(ValueError, match=text):
        loss(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64), **change)


# ---------------------------------------------------------------------------------------------------------------------
# As PyTorch sees them
# ---------------------------------------------------------------------------------------------------------------------


@each_loss
@pytest.mark.parametrize("reduction", [0, 1, 2])
def test_opcheck(device, loss, reduction):
    strided = torch.randn(3, 8, device=device).t().requires_grad_()
    for logits in (torch.randn(8, 3, device=device, requires_grad=True), torch.zeros(0, 3, device=device), strided):
        labels, options = some_labels(len(logits), 3, device), (*loss.parameters.values(), reduction)
        torch.library.opcheck(loss.schema, (logits, labels, 0.25, *options))
        result = loss.schema(logits.detach(), labels, None, *options)
        arguments = (torch.ones_like(result), logits.detach(), labels, None, *options)
        torch.library.opcheck(loss.backward, arguments)


@each_loss
def test_opcheck_of_the_sum_with_its_gradient(device, loss):
    for shape in ((8, 3), (0, 3), (2, 4, 5)):
        logits = torch.randn(shape, device=device)
        labels = some_labels(logits[..., 0].numel(), shape[-1], device).reshape(shape[:-1])
        torch.library.opcheck(loss.with_gradient, (logits, labels, 0.25, *loss.parameters.values()))


def step(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    return loss(logits * 2, labels, reduction="anchor").mean()


@each_loss
def test_traces_in_one_graph(device, loss):
    check_compiled(loss, device, backend="aot_eager")


@pytest.mark.slow
@each_loss
def test_compiles_in_one_graph(loss):
    check_compiled(loss, "cpu")


def check_compiled(loss: Loss, device: str, **options: str) -> None:
    logits, labels = torch.randn(10, 4, device=device, requires_grad=True), some_labels(10, 4, device)
    got = torch.compile(step, fullgraph=True, **options)(loss, logits, labels)
    expected = step(loss, logits, labels)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got, logits), torch.autograd.grad(expected, logits))


@each_loss
def test_exports(device, loss):
    class Module(torch.nn.Module):
        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            return loss(logits, labels)

    inputs = (torch.randn(10, 4, device=device), some_labels(10, 4, device))
    rows = torch.export.Dim("rows")
    program = torch.export.export(Module(), inputs, dynamic_shapes=({0: rows}, {0: rows}))
    other = (torch.randn(13, 4, device=device), some_labels(13, 4, device))
    torch.testing.assert_close(program.module()(*other), loss(*other))


@each_loss
def test_runs_under_autocast(device, loss):
    weight = torch.randn(4, 6, device=device, requires_grad=True)
    features, labels = torch.randn(10, 6, device=device), some_labels(10, 4, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        logits = features @ weight.t()
        total = loss(logits, labels)
    assert (logits.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    total.backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("device", ["cpp-cpu"], indirect=True, scope="module")
@pytest.mark.parametrize(("rows", "classes"), [(10_000, 8), (100, 3000)])
def test_result_does_not_depend_on_the_number_of_threads(device, loss, rows, classes):
    logits, labels = torch.randn(rows, classes, requires_grad=True), some_labels(rows, classes, device)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        total = loss(logits, labels)
        results.append((total, loss(logits, labels, reduction="anchor"), gradient(total, logits)))
    torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))
