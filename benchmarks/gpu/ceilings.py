"""What the device can do at most: copies, matrices. And how near the operations come, by the bytes they must move.

The bytes of an operation are its inputs, read as often as its definition needs, and its outputs, each once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from measuring import Spread, Work, milliseconds, on_device
from operations.inputs import FULL, QUICK, dense_boxes, ground_truth, head_outputs, picture_anchors
from torch import Tensor

from detkit import ops
from gpu.outcome import Context, Ledger, Outcome

_ROUNDS = 9
_CACHE = 64 * 2**20  # bytes, where torch does not know the device's


def run(context: Context) -> Outcome:
    """Measure the speed of copies by size, of products of matrices by type, and then each operation."""
    ledger = Ledger(context)
    largest = 2**23 if context.is_tiny else 2**30
    for size in (largest // 32, largest // 2, largest):
        ledger.once(f"copy of {size // 10**3 / 1000:g} MB", functools.partial(_copy, context.device, size))
    side = 256 if context.is_tiny else 8192
    for name, dtype, precision in _PRODUCTS:
        ledger.once(f"product in {name}", functools.partial(_product, context.device, side, dtype, precision))
    copies = {key: value for key, value in ledger.values().items() if key.startswith("copy")}
    best = max((value["gb_s"] for value in copies.values() if value["bytes"] == largest), default=None)
    for name, measure in operations(context):
        ledger.once(name, functools.partial(_share, measure, best, context.device))
    return ledger.outcome({"copy_gb_s": best})


_PRODUCTS = (("bfloat16", torch.bfloat16, "highest"), ("float32", torch.float32, "highest"),
             ("TF32", torch.float32, "high"))  # fmt: skip


def _copy(device: str, size: int) -> dict[str, float]:
    source, target = (torch.zeros(size // 4, device=device) for _ in range(2))
    ms = _median(lambda: target.copy_(source), device)
    return {"bytes": size, "ms": ms, "gb_s": 2 * size / ms / 1e6}


def _product(device: str, side: int, dtype: torch.dtype, precision: str) -> dict[str, float]:
    torch.set_float32_matmul_precision(precision)
    try:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        ms = _median(lambda: torch.mm(a, b, out=out), device)
    finally:
        torch.set_float32_matmul_precision("highest")
    return {"side": side, "ms": ms, "tflop_s": 2 * side**3 / ms / 1e9}


def _median(work: Work, device: str) -> float:
    milliseconds(work, device)
    return Spread.of([milliseconds(work, device, repeats=5) for _ in range(_ROUNDS)]).median


Measure = functools.partial[tuple[list[Work], float]]  # -> the same work on data of its own each time, and its bytes


def operations(context: Context) -> Iterator[tuple[str, Measure]]:
    """Yield each operation's name and what makes its works."""
    sizes = QUICK if context.is_tiny else FULL
    for images in (1, 2 if context.is_tiny else 16):
        for dtype in (torch.float32, torch.bfloat16):
            rows, kind = images * sizes.anchors, str(dtype)[6:]
            for name, times in (("forward", 1), ("forward and backward", 3)):
                title = f"sigmoid_focal_loss, {name}, {rows} x {sizes.classes}, {kind}"
                yield title, functools.partial(_losses, context, images, sizes.anchors, sizes.classes, dtype, times)
    yield f"match_anchors, {sizes.images} images, {sizes.matched} anchors", functools.partial(_matchings, context)
    yield f"nms_mask, {sizes.images} images, {sizes.grouped} boxes", functools.partial(_masks, context)
    for count in (sizes.few, sizes.many):
        yield f"nms, {count} boxes, IoU 0.5", functools.partial(_nms, context, count)


def _losses(
    context: Context, images: int, anchors: int, classes: int, dtype: torch.dtype, times: int
) -> tuple[list[Work], float]:
    """The logits are moved once forward, and backward read again and written as a gradient; the labels once a pass."""
    logits, labels = head_outputs(anchors, classes, dtype, ignored=True)
    logits, labels = (value.to(context.device).repeat(images, *[1] * (value.ndim - 1)) for value in (logits, labels))
    size = logits.numel() * logits.element_size()

    def work(own: Tensor) -> object:
        loss = ops.sigmoid_focal_loss(own, labels)
        return loss if times == 1 else torch.autograd.grad(loss, own)

    owns = [logits.clone().requires_grad_(times > 1) for _ in range(_copies(context.device, size))]
    return [functools.partial(work, own) for own in owns], times * size + min(times, 2) * labels.numel() * 8


def _copies(device: str, size: int) -> int:
    """Return of how many inputs the device's cache holds no quarter."""
    cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", _CACHE) if device == "cuda" else 0
    return max(1, math.ceil(4 * cache / size))


def _matchings(context: Context) -> tuple[list[Work], float]:
    sizes = QUICK if context.is_tiny else FULL
    anchors, height, width = picture_anchors(sizes.matched)
    truths = ground_truth(sizes.images, sizes.ground_truths, sizes.classes, height, width)
    inputs = [value.to(context.device) for value in (anchors, *truths)]
    moved = 16 * sizes.images * sizes.matched + sum(value.numel() * value.element_size() for value in inputs)
    return [functools.partial(ops.match_anchors, *inputs, num_classes=sizes.classes)], moved


def _masks(context: Context) -> tuple[list[Work], float]:
    sizes = QUICK if context.is_tiny else FULL
    boxes, scores = (value.to(context.device) for value in dense_boxes(sizes.grouped))
    boxes, scores = boxes.repeat(sizes.images, 1, 1), scores.repeat(sizes.images, 1)
    return [functools.partial(ops.nms_mask, boxes, scores, 0.5, quota=100)], scores.numel() * (16 + 4 + 1)


def _nms(context: Context, count: int) -> tuple[list[Work], float]:
    boxes, scores = (value.to(context.device) for value in dense_boxes(count))
    kept = len(ops.nms(boxes, scores, 0.5))
    return [functools.partial(ops.nms, boxes, scores, 0.5)], count * (16 + 4) + 8 * kept


def _share(measure: Measure, copy_gb_s: float | None, device: str) -> dict[str, Any]:
    works, moved = measure()
    waits = measure.func is _nms  # for a number of boxes, which no graph can
    spread, how = on_device(works, device, _ROUNDS, captured=not waits)
    gb_s = moved / spread.median / 1e6
    share = gb_s / copy_gb_s if copy_gb_s else None
    return {"bytes": moved, "ms": spread.median, "low": spread.low, "high": spread.high, "gb_s": gb_s,
            "share": share, "how": how, "inputs": len(works)}  # fmt: skip
