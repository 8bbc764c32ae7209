"""Random and adversarial cases of every operation, kernel against reference.

`DETKIT_STRESS_ROUNDS` sets the rounds per operation (`make stress`: 10000). Round i of an operation is always the same
case. Kept boxes and matches are equal to the bit. Losses are compared with float64 in units: of the last place of the
exact value, times what the rounding of the arguments of exp and log is multiplied by.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detkit import ops
from detkit.ops import _library, reference

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = int(os.environ.get("DETKIT_STRESS_ROUNDS", "60"))
REDUCTIONS = {"none": reference.NONE, "anchor": reference.ANCHOR, "sum": reference.SUM}
on_kernels = pytest.mark.parametrize(
    "device",
    ["cpp-cpu", "emulated-cpu", pytest.param("any-cuda", marks=pytest.mark.cuda)],
    indirect=True,
    scope="module",
)
RULES = {"off": reference.OFF, "detectron2": reference.DETECTRON2, "detectron": reference.DETECTRON}


# ---------------------------------------------------------------------------------------------------------------------
# Suppression
# ---------------------------------------------------------------------------------------------------------------------


def each_round(families: list[str], seed: int) -> Iterator[tuple[int, np.random.Generator, str]]:
    """Yield the number of each round, a random generator of its own, and a family, in turn."""
    for i in range(ROUNDS):
        yield i, np.random.default_rng([seed, i]), families[i % len(families)]


@on_kernels
def test_nms_equals_the_reference(device, families, draw_scene):
    for i, rng, family in each_round(families, 1):
        s = draw_scene(rng, family, 500)
        want = reference.nms(s.boxes, s.scores, s.threshold, s.max_keep)
        got = ops.nms(s.boxes.to(device), s.scores.to(device), s.threshold, max_keep=s.max_keep)
        assert torch.equal(got.cpu(), want), f"round {i}: boxes {family}"


@on_kernels
def test_batched_nms_equals_the_reference(device, families, draw_scene):
    for i, rng, family in each_round(families, 2):
        s = draw_scene(rng, family, 500)
        want = reference.batched_nms(s.boxes, s.scores, s.groups, s.threshold, s.max_keep)
        tensors = (t.to(device) for t in (s.boxes, s.scores, s.groups))
        got = ops.batched_nms(*tensors, s.threshold, max_keep=s.max_keep)
        assert torch.equal(got.cpu(), want), f"round {i}: boxes {family}"


@on_kernels
def test_nms_mask_equals_the_reference(device, families, draw_scene):
    for i, rng, family in each_round(families, 3):
        s = draw_scene(rng, family, 500)
        images = int(rng.integers(1, 4))
        order = torch.from_numpy(np.stack([rng.permutation(len(s.scores)) for _ in range(images)]))
        boxes, scores, kinds = s.boxes[order], s.scores[order], s.kinds[order]
        with_quota = rng.random() < 0.7
        groups = s.groups[order] if rng.random() < 0.3 else None
        wanted = (kinds, s.quota) if with_quota else (None, None)
        want = reference.nms_mask(boxes, scores, s.threshold, groups, *wanted)
        options = {"kinds": kinds.to(device), "quota": s.quota} if with_quota else {}
        if groups is not None:
            options["groups"] = groups.to(device)
        got = ops.nms_mask(boxes.to(device), scores.to(device), s.threshold, **options)
        assert torch.equal(got.cpu(), want), f"round {i}: boxes {family}"


# ---------------------------------------------------------------------------------------------------------------------
# Matching
# ---------------------------------------------------------------------------------------------------------------------


def draw_matching(rng: np.random.Generator, boxes: Tensor, threshold: float) -> dict[str, Any]:
    """Draw the arguments of match_anchors: ground truth that is some of the boxes, or near them, with padding."""
    images, truths, num_classes = int(rng.integers(1, 4)), int(rng.integers(40)), int(rng.integers(1, 90))
    which = torch.from_numpy(rng.integers(0, max(1, len(boxes)), (images, truths)))
    gt_boxes = boxes[which] if len(boxes) else torch.zeros(images, truths, 4)
    if rng.random() < 0.7:
        gt_boxes = gt_boxes + torch.from_numpy(rng.normal(0, 1, gt_boxes.shape)).to(gt_boxes.dtype)
    valid = torch.from_numpy(rng.random((images, len(boxes))) < 0.8)
    thresholds = sorted((threshold, float(rng.choice([0.5, 0.7, threshold]))))
    return {
        "anchors": boxes if rng.random() < 0.5 else boxes.expand(images, -1, -1).clone(),
        "gt_boxes": gt_boxes,
        "gt_classes": torch.from_numpy(rng.integers(-1, num_classes, (images, truths))),
        "valid": valid if rng.random() < 0.5 else None,
        "num_classes": num_classes,
        "positive_iou": thresholds[1],
        "negative_iou": thresholds[0],
        "low_quality": str(rng.choice(list(RULES))),
    }


@on_kernels
def test_match_anchors_equals_the_reference(device, families, draw_scene):
    for i, rng, family in each_round(families, 4):
        scene = draw_scene(rng, family, 500)
        arguments = draw_matching(rng, scene.boxes, scene.threshold)
        want = reference.match_anchors(**{**arguments, "low_quality": RULES[arguments["low_quality"]]})
        there = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
        got = ops.match_anchors(there.pop("anchors"), there.pop("gt_boxes"), there.pop("gt_classes"), **there)
        for part, expected in zip(got, want, strict=True):
            assert torch.equal(part.cpu(), expected), f"round {i}: boxes {family}"


# ---------------------------------------------------------------------------------------------------------------------
# Losses
# ---------------------------------------------------------------------------------------------------------------------

UNITS = 10  # the most that a value or a slope may be off
EPS, TINY = torch.finfo(torch.float32).eps, 8 * torch.finfo(torch.float32).tiny
SUM = 40 * EPS  # a sum is of 16 running ones over a chunk of 1024: 64 roundings each, of half an EPS, and a few more
LOSSES = ["sigmoid_focal_loss", "sigmoid_focal_loss_star", "sigmoid_hinge_loss"]
CURVES = [
    *(("sigmoid_focal_loss", (gamma,)) for gamma in (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)),
    *(("sigmoid_focal_loss_star", options) for options in ((1.0, 0.0), (2.0, 1.0), (4.0, -3.0))),
    *(("sigmoid_hinge_loss", (margin,)) for margin in (0.25, 0.5, 1.0)),
]


def signed(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits in float64, negated beside the label."""
    at_label = labels[..., None] == torch.arange(logits.shape[-1])
    return torch.where(at_label, logits.double(), -logits.double())


def unit(name: str, options: tuple, z: Tensor, exact: Tensor) -> Tensor:
    """How much of an error in a value or slope (given exactly, its weight included) is one unit."""
    if name == "sigmoid_hinge_loss":  # a difference of probabilities
        return torch.full_like(z, EPS)
    if name == "sigmoid_focal_loss":
        stretch = 1 + options[0] * F.softplus(z)  # exp(gamma log q)
    else:
        stretch = 1 + abs(options[0]) * z.abs() + abs(options[1])  # exp(gamma z + beta)
    return EPS * stretch * exact.abs() + TINY


def at_the_kink(name: str, options: tuple, z: Tensor) -> Tensor:
    """Where either slope of a hinge is right: the margin is met up to rounding."""
    if name != "sigmoid_hinge_loss":
        return torch.zeros_like(z, dtype=torch.bool)
    return (torch.sigmoid(z) - options[0]).abs() < 4 * EPS


def rounding(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """How much values lose by being written in a type of 16 bits, and by becoming 0 below float32's normal numbers."""
    limits, flushed = torch.finfo(dtype), torch.full_like(exact, torch.finfo(torch.float32).tiny)
    return flushed + limits.eps / 2 * exact.abs() + limits.tiny * limits.eps if dtype.itemsize == 2 else flushed


@on_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "options"), CURVES)
def test_losses_are_right_to_the_last_places_and_not_biased(device, name, options, dtype):
    count, generator = 100_000, torch.Generator().manual_seed(0)
    scale = torch.tensor([0.01, 1.0, 6.0, 30.0]).repeat(count // 4)
    logits = (torch.randn(count, generator=generator) * scale).to(dtype)[:, None]
    labels = torch.arange(count) % 8 // 4
    z, arguments = signed(logits, labels)[:, 0], (labels, None, *options, reference.ANCHOR)
    on_device = (logits.to(device), labels.to(device), *arguments[1:])
    value = getattr(torch.ops.detkit, name)(*on_device).cpu()
    exact = getattr(reference, name)(logits.double(), *arguments)
    assert_accurate(value - exact, unit(name, options, z, exact), torch.zeros_like(exact))
    slope = getattr(torch.ops.detkit, f"_{name}_backward")(torch.ones(count, device=device), *on_device).cpu()[:, 0]
    exact = getattr(reference, f"{name}_backward")(torch.ones(count), logits.double(), *arguments)[:, 0]
    smooth = ~at_the_kink(name, options, z)
    parts = slope - exact, unit(name, options, z, exact), rounding(exact, dtype)
    assert_accurate(*(part[smooth] for part in parts))


def assert_accurate(error: Tensor, unit: Tensor, rounding: Tensor) -> None:
    """Check each error, and that they do not lean to one side."""
    assert (error.abs() <= UNITS * unit + rounding).all()
    assert abs(error.sum() / (unit + rounding).sum()) < 0.1


@dataclass(frozen=True)
class LossCase:
    """A call of a loss, and a gradient that comes back to it."""

    name: str
    logits: Tensor
    labels: Tensor
    alpha: float | None
    options: dict[str, float]
    reduction: str
    grad: Tensor

    def kernel(self, device: str) -> tuple[Tensor, Tensor]:
        """Loss and gradient to the logits."""
        logits = self.logits.to(device).detach().requires_grad_()
        run = getattr(ops, self.name)
        loss = run(logits, self.labels.to(device), alpha=self.alpha, reduction=self.reduction, **self.options)
        (slope,) = torch.autograd.grad(loss, logits, self.grad.to(device, loss.dtype))
        return loss.detach().cpu(), slope.cpu()

    def each(self) -> tuple[Tensor, Tensor]:
        """Each class's loss and slope in float64, for a gradient of 1."""
        arguments = self.logits.double(), self.labels, self.alpha, *self.options.values(), reference.NONE
        ones = torch.ones(self.logits.shape, dtype=torch.float64)
        slope = getattr(reference, f"{self.name}_backward")(ones, *arguments)
        return getattr(reference, self.name)(*arguments), slope

    def calls(self) -> list[tuple]:
        """The calls of the schema for the loss, its gradient, and both together."""
        arguments = self.logits, self.labels, self.alpha, *self.options.values()
        reduction = REDUCTIONS[self.reduction]
        grad = self.grad.to(self.logits.dtype if self.reduction == "none" else torch.float32)
        return [
            (self.name, *arguments, reduction),
            (f"_{self.name}_backward", grad, *arguments, reduction),
            (f"_{self.name}_with_gradient", *arguments),
        ]


def draw_loss(rng: np.random.Generator, name: str) -> LossCase:
    """Draw rows around the sizes of the kernels' chunks, strided or not, of any scale, with all kinds of labels."""
    classes = int(rng.choice([1, 2, 3, 7, 80, 91, 1023, 1024, 1025, 3000]))
    rows = int(rng.integers(1 + 20_000 // classes))
    dtype = [torch.float32, torch.bfloat16, torch.float16][rng.integers(3)]
    largest = min(1e4, torch.finfo(dtype).max)
    values = rng.normal(0, 10 ** rng.uniform(-2, 3.5), (classes, rows)).clip(-largest, largest)
    logits = torch.from_numpy(values).to(dtype).t()
    mixed = rng.integers(-1, classes + 1, rows)
    few = np.where(rng.random(rows) < 0.1, mixed, classes)
    labels = [mixed, few, rng.integers(0, classes, rows), np.full(rows, classes), np.full(rows, -1)]
    reduction = str(rng.choice(list(REDUCTIONS)))
    shape = {"none": (rows, classes), "anchor": (rows,), "sum": ()}[reduction]
    return LossCase(
        name,
        logits if rng.random() < 0.3 else logits.contiguous(),
        torch.from_numpy(labels[rng.integers(len(labels))]),
        None if rng.random() < 0.3 else float(rng.choice([0, 0.25, 1, rng.random()])),
        _draw_options(rng, name),
        reduction,
        torch.from_numpy(np.asarray(rng.normal(size=shape))).to(dtype),
    )


def _draw_options(rng: np.random.Generator, name: str) -> dict[str, float]:
    if name == "sigmoid_focal_loss":
        return {"gamma": float(rng.choice([0, 0.1, 0.2, 0.5, 1, 2, 5, rng.uniform(0, 8)]))}
    if name == "sigmoid_focal_loss_star":
        return {"gamma": float(rng.uniform(0.1, 5)), "beta": float(rng.normal(0, 2))}
    return {"margin": float(rng.choice([0.25, 0.5, 1, rng.uniform(0.01, 1)]))}


def reduced(values: Tensor, reduction: str) -> Tensor:
    return values if reduction == "none" else values.sum(-1) if reduction == "anchor" else values.sum()


@on_kernels
@pytest.mark.parametrize("name", LOSSES)
def test_losses_equal_float64_up_to_rounding(device, name):
    for i in range(ROUNDS):
        case = draw_loss(np.random.default_rng([5 + LOSSES.index(name), i]), name)
        loss, slope = case.kernel(device)
        exact_loss, exact_slope = case.each()
        z, counted = signed(case.logits, case.labels), (case.labels != -1)[:, None]
        options = tuple(case.options.values())
        error = counted * (UNITS * unit(name, options, z, exact_loss) + SUM * exact_loss)
        exact = reduced(exact_loss, case.reduction)
        allowed = reduced(error, case.reduction) + rounding(exact, loss.dtype)
        assert ((loss - exact).abs() <= allowed).all(), f"round {i}: the loss"
        grad = case.grad.double()[..., None] if case.reduction == "anchor" else case.grad.double()
        error = counted * UNITS * unit(name, options, z, exact_slope) * grad.abs()
        allowed = error + rounding(exact_slope * grad, slope.dtype) + rounding(exact_slope, slope.dtype) * grad.abs()
        right = ((slope - exact_slope * grad).abs() <= allowed) | (counted & at_the_kink(name, options, z))
        assert right.all(), f"round {i}: the gradient"


# ---------------------------------------------------------------------------------------------------------------------
# The instruction sets that the kernels choose from
# ---------------------------------------------------------------------------------------------------------------------

# Runs calls (name, tensors, options) of torch.ops.detkit from a file, and writes what they return to another.
RUN = """
import sys, torch
import detkit.ops
assert torch.backends.cpu.get_cpu_capability() == sys.argv[3]
calls = torch.load(sys.argv[1])
torch.save([getattr(torch.ops.detkit, name)(*arguments) for name, *arguments in calls], sys.argv[2])
"""


def choices(draw_scene, families: list[str]) -> list[tuple]:
    """Calls whose results are choices: indices, masks, labels."""
    calls, rng = [], np.random.default_rng(8)
    for family in families:
        s = draw_scene(rng, family, 400)
        truths = s.boxes[None, ::7], torch.arange(len(s.boxes[::7]))[None] % 5 - 1
        calls += [
            ("nms", s.boxes, s.scores, s.threshold, s.max_keep),
            ("batched_nms", s.boxes, s.scores, s.groups, s.threshold, s.max_keep),
            ("nms_mask", s.boxes[None], s.scores[None], s.threshold, None, s.kinds[None], s.quota),
            ("match_anchors", s.boxes, *truths, None, 4, 0.5, 0.4, reference.DETECTRON2),
        ]
    return calls


def losses() -> list[tuple]:
    """Calls of losses and their gradients; a product may be fused with a sum, so these are equal to rounding only."""
    rng = np.random.default_rng(9)
    return [call for name in LOSSES * 8 for call in draw_loss(rng, name).calls()]


@pytest.mark.parametrize(("setting", "capability"), [("avx2", "AVX2"), ("default", "DEFAULT")])
def test_narrower_vectors_give_the_same_results(tmp_path, families, draw_scene, setting, capability):
    if _library.load().path is None:
        pytest.skip(f"no compiled library: {_library.load().reason}")
    widest = torch.backends.cpu.get_cpu_capability()
    if capability not in {"AVX512": ["AVX2", "DEFAULT"], "AVX2": ["DEFAULT"]}.get(widest, []):
        pytest.skip(f"{capability} is not narrower than what this processor has, {widest}")
    exact, rounded = choices(draw_scene, families), losses()
    torch.save(exact + rounded, tmp_path / "calls.pt")
    command = [sys.executable, "-c", RUN, str(tmp_path / "calls.pt"), str(tmp_path / "results.pt"), capability]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": setting, "DETKIT_OPS": "cpp", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    with _library.forced("cpp"):
        here = [getattr(torch.ops.detkit, name)(*arguments) for name, *arguments in exact + rounded]
    results = zip(exact + rounded, here, torch.load(tmp_path / "results.pt"), strict=True)
    for i, ((name, *_), want, got) in enumerate(results):
        tolerance = {"rtol": 0, "atol": 0} if i < len(exact) else {}
        torch.testing.assert_close(got, want, **tolerance, msg=lambda text, name=name: f"{name}: {text}")
