from __future__ import annotations

import math

import fvcore.nn
import mpmath
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detkit import ops
from detkit.ops import _library

GAMMAS = [0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
EXTREMES = [0.0, 1e-3, 1.0, 17.0, 40.0, 90.0, 200.0, 1e3, 1e4]


def some_labels(rows: int, classes: int, device: str) -> Tensor:
    """All kinds of labels in turn: ignored, the classes, background."""
    return (torch.arange(rows, device=device) % (classes + 2)) - 1


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return (labels[..., None] == torch.arange(classes, device=labels.device)).double()


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0]


def exact_loss(x: float, positive: bool, alpha: float | None, gamma: float) -> mpmath.mpf:
    with mpmath.workdps(40):
        z = mpmath.mpf(x) if positive else -mpmath.mpf(x)
        weight = 1 if alpha is None else (alpha if positive else 1 - mpmath.mpf(alpha))
        q, log_p = 1 / (1 + mpmath.exp(z)), -mpmath.log1p(mpmath.exp(-z))
        return -weight * q ** mpmath.mpf(gamma) * log_p


def exact_slope(x: float, positive: bool, alpha: float | None, gamma: float) -> mpmath.mpf:
    with mpmath.workdps(60):
        return mpmath.diff(lambda v: exact_loss(v, positive, alpha, gamma), mpmath.mpf(x), h=mpmath.mpf(10) ** -18)


def test_gamma_zero_is_cross_entropy(device):
    logits = torch.randn(7, 5, device=device, dtype=torch.float64) * 5
    labels = torch.arange(7, device=device) % 6
    expected = F.binary_cross_entropy_with_logits(logits, one_hot(labels, 5), reduction="sum")
    torch.testing.assert_close(ops.sigmoid_focal_loss(logits, labels, alpha=None, gamma=0.0), expected)


def test_alpha_weighs_the_class_and_its_complement_the_rest(device):
    logits, labels = torch.randn(12, 4, device=device), some_labels(12, 4, device)
    plain = ops.sigmoid_focal_loss(logits, labels, alpha=None, reduction="none")
    weighted = ops.sigmoid_focal_loss(logits, labels, alpha=0.3, reduction="none")
    weight = torch.where(one_hot(labels, 4).bool(), 0.3, 0.7)
    torch.testing.assert_close(weighted, plain * weight)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_equals_fvcore_at_moderate_logits(device, gamma, alpha):
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
    loss = ops.sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(gradient(loss, logits), gradient(expected, logits), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-4)])
def test_value_and_gradient_are_right_up_to_extreme_logits(device, gamma, dtype, tolerance):
    values = torch.tensor([s * v for v in EXTREMES for s in (1, -1)], dtype=dtype, device=device)
    logits = values.repeat(2)[:, None].requires_grad_()
    labels = torch.tensor([0] * len(values) + [1] * len(values), device=device)  # the class; background
    loss = ops.sigmoid_focal_loss(logits, labels, gamma=gamma, reduction="anchor")
    slope = gradient(loss, logits)[:, 0]
    smallest = torch.finfo(dtype).tiny
    for x, label, got_loss, got_slope in zip(
        logits[:, 0].tolist(), labels.tolist(), loss.tolist(), slope.tolist(), strict=True
    ):
        want = float(exact_loss(x, label == 0, 0.25, gamma))
        assert math.isclose(got_loss, want, rel_tol=tolerance, abs_tol=smallest), (x, label)
        want = float(exact_slope(x, label == 0, 0.25, gamma))
        assert math.isclose(got_slope, want, rel_tol=tolerance, abs_tol=1e-15), (x, label)


@pytest.mark.parametrize("reduction", ["sum", "anchor", "none"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradcheck(device, reduction, gamma):
    logits = torch.randn(9, 3, device=device, dtype=torch.float64, requires_grad=True)
    labels = some_labels(9, 3, device)
    assert torch.autograd.gradcheck(
        lambda x: ops.sigmoid_focal_loss(x, labels, gamma=gamma, reduction=reduction), logits, fast_mode=False
    )


@given(rows=st.integers(0, 600), classes=st.integers(0, 9), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_reductions_agree(device, rows, classes, seed):
    torch.manual_seed(seed)
    logits = torch.randn(rows, classes, dtype=torch.float64).to(device)
    labels = torch.randint(-1, classes + 1, (rows,)).to(device)
    each, anchors, total = (ops.sigmoid_focal_loss(logits, labels, reduction=r) for r in ("none", "anchor", "sum"))
    assert each.shape == logits.shape
    assert anchors.shape == labels.shape
    torch.testing.assert_close(anchors, each.sum(-1))
    torch.testing.assert_close(total, each.sum())


def test_gradient_of_each_reduction_follows_the_incoming_gradient(device):
    logits = torch.randn(3, 5, 4, device=device, dtype=torch.float64, requires_grad=True)
    labels = some_labels(15, 4, device).reshape(3, 5)
    each = gradient(ops.sigmoid_focal_loss(logits, labels), logits)
    per_anchor, per_element = torch.randn(3, 5, device=device), torch.randn(3, 5, 4, device=device)
    got = gradient(ops.sigmoid_focal_loss(logits, labels, reduction="anchor") * per_anchor, logits)
    torch.testing.assert_close(got, each * per_anchor[..., None])
    got = gradient(ops.sigmoid_focal_loss(logits, labels, reduction="none") * per_element, logits)
    torch.testing.assert_close(got, each * per_element)
    torch.testing.assert_close(gradient(3 * ops.sigmoid_focal_loss(logits, labels), logits), 3 * each)


def test_ignored_rows_count_for_nothing_whatever_they_hold(device):
    logits = torch.randn(6, 3, device=device)
    labels = torch.tensor([0, -1, 3, -1, 2, 1], device=device)
    logits[1], logits[3] = math.nan, math.inf
    logits.requires_grad_()
    for reduction in ("sum", "anchor", "none"):
        loss = ops.sigmoid_focal_loss(logits, labels, reduction=reduction)
        slope = gradient(loss, logits)
        assert torch.isfinite(loss).all()
        assert (slope[[1, 3]] == 0).all()
        assert (slope[[0, 2, 4, 5]] != 0).all()
    assert (ops.sigmoid_focal_loss(logits, labels, reduction="anchor")[[1, 3]] == 0).all()


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0,), (2, 0, 5)])
def test_nothing_to_sum_is_zero_with_a_graph(device, shape):
    logits = torch.zeros(shape, device=device, requires_grad=True)
    labels = torch.zeros(shape[:-1], device=device, dtype=torch.int64)
    loss = ops.sigmoid_focal_loss(logits, labels)
    assert loss.item() == 0
    assert gradient(loss, logits).shape == shape


def test_a_vector_of_logits_is_one_anchor(device):
    logits = torch.randn(4, device=device)
    loss = ops.sigmoid_focal_loss(logits, torch.tensor(2, device=device), reduction="anchor")
    assert loss.shape == ()
    torch.testing.assert_close(loss, ops.sigmoid_focal_loss(logits[None], torch.tensor([2], device=device)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_are_computed_in_float32(device, dtype):
    logits = (torch.randn(50, 7, device=device) * 6).to(dtype).requires_grad_()
    wide = logits.detach().float().requires_grad_()
    labels = some_labels(50, 7, device)
    for reduction in ("sum", "anchor", "none"):
        loss, expected = (ops.sigmoid_focal_loss(x, labels, reduction=reduction) for x in (logits, wide))
        assert loss.dtype == (dtype if reduction == "none" else torch.float32)
        torch.testing.assert_close(loss, expected.to(loss.dtype))
        assert gradient(loss, logits).dtype == dtype
        torch.testing.assert_close(gradient(loss, logits), gradient(expected, wide).to(dtype))


def test_label_types_are_equal(device):
    logits = torch.randn(30, 4, device=device)
    labels = torch.arange(30, device=device) % 5
    expected = ops.sigmoid_focal_loss(logits, labels)
    assert torch.equal(ops.sigmoid_focal_loss(logits, labels.int()), expected)
    assert torch.equal(ops.sigmoid_focal_loss(logits, labels.to(torch.uint8)), expected)


def test_layout_of_the_inputs_does_not_matter(device):
    logits = torch.randn(4, 6, 5, device=device)
    labels = some_labels(24, 4, device).reshape(6, 4)
    turned = logits.permute(1, 2, 0).requires_grad_()  # [6, 5, 4] -> rows of 4 classes
    loss = ops.sigmoid_focal_loss(turned, labels[:, :1].expand(6, 5))
    plain = turned.detach().contiguous().requires_grad_()
    expected = ops.sigmoid_focal_loss(plain, labels[:, :1].expand(6, 5).contiguous())
    assert torch.equal(loss, expected)
    assert torch.equal(gradient(loss, turned), gradient(expected, plain))


def test_no_gradient_where_none_is_asked(device):
    assert not ops.sigmoid_focal_loss(torch.randn(2, 3, device=device), some_labels(2, 3, device)).requires_grad


def test_second_derivative_is_refused(device):
    logits = torch.randn(3, 2, device=device, requires_grad=True)
    (slope,) = torch.autograd.grad(ops.sigmoid_focal_loss(logits, some_labels(3, 2, device)), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        slope.sum().backward()


@pytest.mark.parametrize("wrong", [-2, 4, 255, -(2**40)])
def test_label_out_of_range_is_named(device, wrong):
    if device != "cpu":
        pytest.skip("only the CPU reads the labels: elsewhere that would wait for the device")
    labels = torch.tensor([0, 3, wrong, 1])
    with pytest.raises(RuntimeError, match=rf"label {wrong} is not in -1\.\.3"):
        ops.sigmoid_focal_loss(torch.zeros(4, 3), labels)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"logits": torch.zeros(4, 3, dtype=torch.int64)}, "logits must be float32"),
        ({"labels": torch.zeros(4)}, "labels must be int64"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels \(3,\) must have the shape of logits \(4, 3\)"),
        ({"logits": torch.tensor(1.0)}, "must have the shape"),
        ({"labels": torch.zeros(4, dtype=torch.int64, device="meta")}, "labels are on meta"),
        ({"alpha": 1.5}, r"alpha must be None or in \[0, 1\], not 1.5"),
        ({"alpha": math.nan}, "alpha must be"),
        ({"gamma": -0.1}, "gamma must be finite and at least 0, not -0.1"),
        ({"gamma": math.inf}, "gamma must be finite"),
        ({"reduction": "mean"}, "reduction must be one of"),
    ],
)
def test_wrong_arguments_are_named(change, text):
    arguments = {"logits": torch.zeros(4, 3), "labels": torch.zeros(4, dtype=torch.int64), **change}
    with pytest.raises(ValueError, match=text):
        ops.sigmoid_focal_loss(arguments.pop("logits"), arguments.pop("labels"), **arguments)


@pytest.mark.parametrize("reduction", [0, 1, 2])
def test_opcheck(device, reduction):
    strided = torch.randn(3, 8, device=device).t().requires_grad_()
    for logits in (torch.randn(8, 3, device=device, requires_grad=True), torch.zeros(0, 3, device=device), strided):
        labels = some_labels(len(logits), 3, device)
        torch.library.opcheck(torch.ops.detkit.sigmoid_focal_loss, (logits, labels, 0.25, 2.0, reduction))
        loss = torch.ops.detkit.sigmoid_focal_loss(logits.detach(), labels, None, 2.0, reduction)
        arguments = (torch.ones_like(loss), logits.detach(), labels, None, 2.0, reduction)
        torch.library.opcheck(torch.ops.detkit._sigmoid_focal_loss_backward, arguments)


def test_traces_in_one_graph(device):
    logits, labels = torch.randn(10, 4, device=device, requires_grad=True), some_labels(10, 4, device)
    loss, expected = torch.compile(step, fullgraph=True, backend="aot_eager")(logits, labels), step(logits, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, logits), gradient(expected, logits))


def step(logits: Tensor, labels: Tensor) -> Tensor:
    return ops.sigmoid_focal_loss(logits * 2, labels, reduction="anchor").mean()


@pytest.mark.slow
def test_compiles_in_one_graph():
    logits, labels = torch.randn(10, 4, requires_grad=True), some_labels(10, 4, "cpu")
    loss, expected = torch.compile(step, fullgraph=True)(logits, labels), step(logits, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits))


def test_exports(device):
    class Module(torch.nn.Module):
        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            return ops.sigmoid_focal_loss(logits, labels)

    inputs = (torch.randn(10, 4, device=device), some_labels(10, 4, device))
    rows = torch.export.Dim("rows")
    program = torch.export.export(Module(), inputs, dynamic_shapes=({0: rows}, {0: rows}))
    other = (torch.randn(13, 4, device=device), some_labels(13, 4, device))
    torch.testing.assert_close(program.module()(*other), ops.sigmoid_focal_loss(*other))


def test_runs_under_autocast(device):
    weight = torch.randn(4, 6, device=device, requires_grad=True)
    features, labels = torch.randn(10, 6, device=device), some_labels(10, 4, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        logits = features @ weight.t()
        loss = ops.sigmoid_focal_loss(logits, labels)
    assert (logits.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_result_does_not_depend_on_the_number_of_threads():
    if _library.load().path is None:
        pytest.skip(f"no compiled library: {_library.load().reason}")
    logits, labels = torch.randn(5000, 8), some_labels(5000, 8, "cpu")
    threads, results = torch.get_num_threads(), []
    with _library.forced("cpp"):
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(ops.sigmoid_focal_loss(logits, labels))
    torch.set_num_threads(threads)
    assert results[0] == results[1] == results[2]
