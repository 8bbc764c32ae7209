"""Tensors of more elements than 31 bits count, beside the same values in small ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detkit import ops
from gpu.outcome import Context, Ledger, Outcome, SkippedError

_MORE = 2**31 + 2**20
_TINY = 2**14
_CLASSES = 64
_TAIL = 500  # rows whose results are compared


def run(context: Context) -> Outcome:
    """Compare the ends of results beyond 2^31 elements with those of the ends alone, where memory allows."""
    ledger, elements = Ledger(context), _TINY if context.is_tiny else _MORE
    for name in ("sigmoid_focal_loss", "sigmoid_focal_loss_star", "sigmoid_hinge_loss"):
        ledger.once(name, lambda name=name: _loss(name, context, elements))
    ledger.once("match_anchors", lambda: _matching(context, elements))
    return ledger.outcome({"elements": elements})


def _loss(name: str, context: Context, elements: int) -> dict[str, Any]:
    """Of bfloat16: two bytes an element, as many for the gradient, four for the values of each."""
    rows = elements // _CLASSES
    tail = min(_TAIL, rows // 2)
    need(context, 5 * elements + 20 * rows)
    function = getattr(ops, name)
    logits = torch.zeros(rows, _CLASSES, device=context.device, dtype=torch.bfloat16)
    labels = torch.full((rows,), _CLASSES, device=context.device)
    logits[-tail:] = torch.randn(tail, _CLASSES, device=context.device)
    labels[-tail:] = torch.arange(tail, device=context.device) % (_CLASSES + 2) - 1
    for reduction in ("sum", "anchor"):
        whole = _gradient(function, reduction, logits, labels)[-tail:]
        if not torch.equal(whole, _gradient(function, reduction, logits[-tail:], labels[-tail:])):
            raise AssertionError(f"{name}, {reduction}: the gradient of the last rows of {rows} differs")
    of_rows = function(logits, labels, reduction="anchor")
    torch.testing.assert_close(function(logits, labels).double(), of_rows.double().sum(), rtol=1e-5, atol=0)
    return {"elements": logits.numel()}


def _gradient(function: Any, reduction: str, logits: Tensor, labels: Tensor) -> Tensor:
    logits = logits.detach().requires_grad_()
    value = function(logits, labels, reduction=reduction)
    return torch.autograd.grad(value, logits, torch.full_like(value, 0.7))[0]


def _matching(context: Context, elements: int) -> dict[str, Any]:
    """Two outputs of eight bytes an element, for 17 images."""
    images = 17
    anchors = elements // images + 1
    need(context, 17 * elements + 64 * anchors)
    generator = torch.Generator(context.device).manual_seed(0)
    corners = torch.rand(anchors, 2, device=context.device, generator=generator) * 1000
    boxes = torch.cat([corners, corners + 40], 1)
    truths = boxes[:: max(1, anchors // 100)][:9].repeat(images, 1, 1) + 3
    classes = torch.arange(truths.shape[1], device=context.device).repeat(images, 1)
    labels, matched = ops.match_anchors(boxes, truths, classes, num_classes=80)
    alone = ops.match_anchors(boxes, truths[-1:], classes[-1:], num_classes=80)
    if not (torch.equal(labels[-1], alone[0][0]) and torch.equal(matched[-1], alone[1][0])):
        raise AssertionError(f"match_anchors: the last of {images} images with {anchors} anchors differs")
    return {"elements": labels.numel()}


def need(context: Context, size: float) -> None:
    """Raise SkippedError where so many bytes, and a tenth more, are not free on the device."""
    if context.device == "cuda":
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
        if free < 1.1 * size:
            raise SkippedError(f"needs {1.1 * size / 2**30:.0f} GiB of memory, and {free / 2**30:.0f} are free")
